// Do gate and ledger agree, and who changed what?

import { get, inNamespace } from "./api.js";
import { html, useState } from "./html.js";
import { Search } from "./invites.js";
import { count, Empty, Failure, Loading, Pager, Panel, Select, Table, Time, useHere, usePages, useSubmit } from "./ui.js";

const ACTIONS = [
  "namespace_put", "namespace_archived", "invite_created", "invite_imported", "invite_changed", "invite_deleted", "batch_ordered", "invites_created",
  "campaign_put", "redemption_rolled_back", "joined", "left", "user_erased", "reserved", "reservation_released", "webhook_created", "webhook_changed",
  "webhook_secret_rotated", "webhook_deleted", "webhook_disabled", "delivery_retried",
];

function Consistency() {
  const { ns } = useHere();
  const [report, setReport] = useState(null);
  const { busy, problem, submit } = useSubmit(async () => setReport({ ...(await get(inNamespace(ns, "consistency"))), at: new Date().toISOString() }));
  const columns = [
    { head: "Key", cell: ({ key }) => html`<code>${key}</code>` },
    { head: "What differs", cell: (difference) => html`<code>${JSON.stringify(difference.fields ?? difference)}</code>` },
  ];
  return html`<${Panel} title="Consistency" actions=${html`<button type="button" disabled=${busy} onClick=${submit}>${busy ? "Comparing…" : "Compare now"}</button>`}>
    <p class="fine">Compares every key of the namespace's partition in Redis with what the ledger says, also while both move. Leaders do so by themselves every hour.</p>
    <${Failure} problem=${problem} />
    ${busy && html`<${Loading} rows=${2} />`}
    ${report && !busy && html`<div class=${`note ${report.consistent ? "good" : "bad"}`} role="status"><div>
      <strong>${report.consistent ? "Gate and ledger agree" : "Gate and ledger differ"}</strong>
      <p>${count(report.compared)} keys of partition ${report.partition} compared at <${Time} at=${report.at} />: ${count(report.differences_count)} differ, ${count(report.broken_laws.length)} laws broken${report.not_compared.length ? `, ${count(report.not_compared.length)} changed each time` : ""}.</p>
      ${report.broken_laws.map((law) => html`<p>${law}</p>`)}
      ${!report.consistent && html`<p><code>redeemer audit --repair</code> writes such keys anew.</p>`}
    </div></div>`}
    ${report?.differences.length > 0 && html`<${Table} label="Differences" columns=${columns} rows=${report.differences} id=${({ key }) => key} />`}
  <//>`;
}

export function Audit({ query }) {
  const { ns, filter } = useHere();
  const { action, actor } = query;
  const pages = usePages(inNamespace(ns, "audit"), { action, actor });
  const columns = [
    { head: "When", cell: ({ at }) => html`<${Time} at=${at} />` },
    { head: "Who", cell: ({ actor, actor_name }) => (actor_name ? html`<span title=${actor}>${actor_name}</span>` : html`<code>${actor}</code>`) },
    { head: "What", cell: ({ action }) => action.replaceAll("_", " ") },
    { head: "To", cell: ({ subject }) => html`<code>${subject}</code>` },
    { head: "Id", cell: ({ id, request_id }) => html`<span class="fine" title=${request_id && `request ${request_id}`}>${id}</span>` },
  ];
  return html`
    <div class="head"><h1>Consistency and audit</h1></div>
    <${Consistency} />
    <div class="head"><h2>Who changed what</h2></div>
    <search class="filters">
      <${Select} label="Action" value=${action ?? ""} options=${[["", "Any"], ...ACTIONS.map((action) => [action, action.replaceAll("_", " ")])]} onChange=${(event) => filter({ ...query, action: event.target.value })} />
      <${Search} label="Key's id" value=${actor ?? ""} change=${(actor) => filter({ ...query, actor })} />
    </search>
    <${Failure} problem=${pages.problem} retry=${pages.reload} />
    ${pages.rows?.length === 0 && html`<${Empty} title="Nothing">${action || actor ? "No change is like that." : "Administrative changes are listed here for ever."}<//>`}
    ${pages.rows?.length > 0 && html`<${Table} label="Changes" columns=${columns} rows=${pages.rows} />`}
    <${Pager} pages=${pages} what="changes" />`;
}

// Who is being limited, and why.

import { get, inNamespace } from "./api.js";
import { html } from "./html.js";
import { Badge, count, Empty, Failure, lasted, Loaded, may, Panel, Table, Time, useHere, useLoad } from "./ui.js";

const LOOK_MS = 3000;
const POLICIES = {
  user: ["A user's attempts", "by user"],
  ip: ["Attempts from an address", "by address; of IPv6, its /64"],
  code: ["Attempts on a code", "by code"],
  namespace: ["All attempts", "in the whole namespace"],
  guess: ["Codes that do not exist", "by address, else user, else API key"],
};

const inWords = (quota) => {
  const [times, seconds] = quota.split("/").map(Number);
  return `${count(times)} in ${seconds % 3600 === 0 ? (seconds === 3600 ? "an hour" : `${seconds / 3600} hours`) : seconds === 60 ? "a minute" : lasted(seconds)}`;
};

function Limited() {
  const { ns } = useHere();
  const limited = useLoad((signal) => get(inNamespace(ns, "rate-limited"), signal), [ns], LOOK_MS);
  const columns = [
    { head: "Who", cell: ({ kind, subject }) => html`<span class="fine">${kind}</span> ${subject && html`<code>${subject}</code>`}` },
    { head: "Why", cell: ({ policy }) => POLICIES[policy][0] },
    { head: "Refused", kind: "num", cell: ({ refused }) => count(refused) },
    { head: "First", cell: ({ first_at }) => html`<${Time} at=${first_at} />` },
    { head: "Last", cell: ({ last_at }) => html`<${Time} at=${last_at} />` },
    { head: "Now", cell: ({ free_at }) => (Date.parse(free_at) > Date.now() ? html`<${Badge} word="limited" tone="warn" /> <span class="fine">for ${lasted((Date.parse(free_at) - Date.now()) / 1000)}</span>` : html`<${Badge} word="free again" tone="good" />`) },
  ];
  return html`<${Panel} title="Who is being limited" wide>
    <${Loaded} of=${limited}>${({ data, node }) => html`
      <p class="fine">What node <code>${node}</code> has refused in the last hour. It is kept in its memory alone: each node knows its own, and none after a restart.</p>
      ${data.length ? html`<${Table} label="Who is being limited" columns=${columns} rows=${data} id=${({ policy, kind, subject }) => `${policy} ${kind} ${subject}`} />`
        : html`<${Empty} title="Nobody">No rate limit has refused anybody here.<//>`}`}<//>
  <//>`;
}

export function Limits() {
  const { ns, own, link } = useHere();
  const settings = useLoad((signal) => get(inNamespace(ns), signal), [ns]);
  const stats = useLoad((signal) => get(inNamespace(ns, "stats"), signal), [ns], LOOK_MS);
  const totals = stats.data?.totals ?? {};
  const columns = [
    { head: "Limit", cell: ([name]) => html`<b>${POLICIES[name][0]}</b>` },
    { head: "Counted", cell: ([name]) => html`<span class="fine">${POLICIES[name][1]}</span>` },
    { head: "Allowed", cell: ([, quota]) => (quota ? inWords(quota) : html`<span class="fine">off</span>`) },
  ];
  return html`
    <div class="head"><h1>Rate limits</h1>${may(own, "manage") && html`<div class="actions"><a class="button" href=${link("settings")}>Change the limits</a></div>`}</div>
    <${Failure} problem=${stats.problem} />
    <dl class="tiles">
      <div class="tile"><dt>Too many attempts</dt><dd>${count(totals.rate_limited ?? 0)}<span class="fine">refused in the last hour</span></dd></div>
      <div class="tile"><dt>Too many guesses</dt><dd>${count(totals.too_many_attempts ?? 0)}<span class="fine">refused in the last hour</span></dd></div>
      <div class="tile"><dt>Codes that do not exist</dt><dd>${count((totals.invite_not_found ?? 0) + (totals.invite_invalid ?? 0))}<span class="fine">tried in the last hour</span></dd></div>
    </dl>
    <div class="columns">
      ${may(own, "manage") ? html`<${Limited} />` : html`<p class="note warn wide">Who is being limited is shown to keys with the role <b>manage</b>, since it names users and addresses.</p>`}
      <${Panel} title="Limits" wide><${Loaded} of=${settings}>${(settings) => html`<${Table} label="Limits" columns=${columns} rows=${Object.keys(POLICIES).map((name) => [name, settings[`rate_${name}`]])} id=${([name]) => name} />`}<//><//>
    </div>`;
}

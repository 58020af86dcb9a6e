// Who is in which group, how they came there, and how they leave.

import { download, inNamespace, send } from "./api.js";
import { html, useState } from "./html.js";
import { Search } from "./invites.js";
import { useReload } from "./live.js";
import { Confirm, Dialog, Empty, Failure, Field, may, Pager, Table, Time, useHere, usePages, useSubmit, wrongIn } from "./ui.js";

function Join({ close, done }) {
  const { ns } = useHere();
  const [{ user, group }, set] = useState({ user: "", group: "" });
  const { busy, problem, submit } = useSubmit(async () => {
    await send("PUT", inNamespace(ns, "members", user, group), {});
    done();
    close();
  });
  return html`<${Dialog} title="Add a member without a code" close=${close}>
    <form onSubmit=${submit}>
      <${Field} label="User" required value=${user} onInput=${(event) => set({ user: event.target.value, group })} error=${wrongIn(problem, "user")} />
      <${Field} label="Group" required value=${group} onInput=${(event) => set({ user, group: event.target.value })} error=${wrongIn(problem, "group")} />
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="primary" disabled=${busy}>Add</button></footer>
    </form>
  <//>`;
}

export function Members({ query }) {
  const { ns, own, filter, link } = useHere();
  const [open, setOpen] = useState(null);
  const { user, group } = query;
  const pages = usePages(inNamespace(ns, "members"), { user, group });
  useReload(pages.reload, ({ type }) => ["redeemed", "redemption_rolled_back", "joined", "left", "user_erased"].includes(type));
  const close = () => setOpen(null);
  const manages = may(own, "manage");
  const columns = [
    { head: "User", cell: ({ user }) => html`<b>${user}</b>` },
    { head: "Group", cell: ({ group }) => group },
    { head: "By", cell: ({ redemption }) => (redemption ? "a code" : html`<span class="fine">another way</span>`) },
    { head: "Since", cell: ({ joined_at }) => html`<${Time} at=${joined_at} />` },
    ...(manages ? [{ head: "", cell: (member) => html`<span class="actions end">
      <button type="button" class="small" aria-label=${`Remove ${member.user} from ${member.group}`} onClick=${() => setOpen({ leave: member })}>Remove</button>
      <button type="button" class="small danger" aria-label=${`Forget ${member.user}`} onClick=${() => setOpen({ forget: member })}>Forget</button></span>` }] : []),
  ];
  const saved = useSubmit(() => download(inNamespace(ns, "export", "members") + "?spreadsheet=true", `${ns}-members.csv`, "text/csv"));
  return html`
    <div class="head"><h1>Members</h1><div class="actions">
      <button type="button" disabled=${saved.busy} onClick=${saved.submit}>${saved.busy ? "Downloading…" : "Download CSV"}</button>
      ${manages && html`<button type="button" class="primary" onClick=${() => setOpen("join")}>Add a member</button>`}</div></div>
    <search class="filters">
      <${Search} label="User" value=${user ?? ""} change=${(user) => filter({ ...query, user })} />
      <${Search} label="Group" value=${group ?? ""} change=${(group) => filter({ ...query, group })} />
      ${(user || group) && html`<button type="button" onClick=${() => filter({})}>All members</button>`}
    </search>
    <${Failure} problem=${pages.problem ?? saved.problem} retry=${pages.problem && pages.reload} />
    ${pages.rows?.length === 0 && html`<${Empty} title=${user || group ? "Nobody is like that" : "No members yet"}>${user || group ? "User and group are looked for as they are, whole." : "Whoever redeems an invite is a member of its group."}<//>`}
    ${pages.rows?.length > 0 && html`<${Table} label="Members" columns=${columns} rows=${pages.rows} id=${({ user, group }) => `${user}\n${group}`} />`}
    <${Pager} pages=${pages} what="members" />
    ${open === "join" && html`<${Join} close=${close} done=${pages.reload} />`}
    ${open?.leave && html`<${Confirm} title=${`Remove ${open.leave.user}`} verb="Remove" close=${close}
      act=${async () => (await send("DELETE", inNamespace(ns, "members", open.leave.user, open.leave.group)), pages.reload())}>
      <p><b>${open.leave.user}</b> leaves <b>${open.leave.group}</b>. The use stays spent, and the user may redeem again.</p><//>`}
    ${open?.forget && html`<${Confirm} title=${`Forget ${open.forget.user}`} verb="Forget for ever" close=${close}
      act=${async () => (await send("DELETE", inNamespace(ns, "users", open.forget.user)), pages.reload())}>
      <p>Another name takes the place of <b>${open.forget.user}</b> in memberships, redemptions, reservations, invites and the audit log. Counts stay as they are. It can not be undone.</p><//>`}`;
}

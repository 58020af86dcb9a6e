// One invite: how full it is, what happened to it, who came by it, how to hand it out and how to look at it in Redis.

import { get, inNamespace, send, withQuery } from "./api.js";
import { html, useMemo, useRef, useState } from "./html.js";
import { readFields, SharedFields } from "./invites.js";
import { useReload } from "./live.js";
import { Badge, Command, Confirm, Copy, count, Dialog, Empty, Failure, Field, Loaded, may, Meter, moment, Pager, Panel, Table, Time, useHere, useLoad, usePages, useSubmit, wrongIn } from "./ui.js";
import { encode } from "./vendor/uqr.mjs";

// Where links lead: the page for people of this service, unless the application has one of its own.
const LINK = "redeemer.link";
const pageForPeople = (ns) => `${location.origin}/i/${encodeURIComponent(ns)}/{code}`;
const templateOf = (ns) => localStorage.getItem(`${LINK}.${ns}`) ?? pageForPeople(ns);

function Qr({ text }) {
  const { size, data } = useMemo(() => encode(text, { ecc: "M", border: 2 }), [text]);
  const dots = data.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : ""))).join("");
  return html`<svg class="qr" viewBox=${`0 0 ${size} ${size}`} role="img" aria-label=${`QR code of ${text}`} shape-rendering="crispEdges">
    <rect width=${size} height=${size} fill="#fff" /><path d=${dots} fill="#000" />
  </svg>`;
}

function HandOut({ invite, close }) {
  const { ns } = useHere();
  const [template, setTemplate] = useState(templateOf(ns));
  const change = (event) => {
    setTemplate(event.target.value);
    localStorage.setItem(`${LINK}.${ns}`, event.target.value);
  };
  const link = template.replaceAll("{code}", encodeURIComponent(invite.code));
  return html`<${Dialog} title=${`Hand out ${invite.code}`} close=${close}>
    <div class="body">
      <${Qr} text=${link} />
      <${Command} what="link">${link}<//>
      <${Field} label="Links lead to" value=${template} onInput=${change}
        hint="{code} stands for the code. Kept in this browser. The page for people of this service has to be switched on (page.namespaces)." />
    </div>
  <//>`;
}

// A time as the browser's control for it wants it: here, to the minute.
const toLocal = (at) => (at ? new Date(Date.parse(at) - new Date(at).getTimezoneOffset() * 60_000).toISOString().slice(0, 16) : "");

function Change({ invite: now, close, done }) {
  const { ns } = useHere();
  // As it was when it was shown: what others change meanwhile is not to be overwritten.
  const [invite] = useState(now);
  const form = useRef();
  const { busy, problem, submit } = useSubmit(async () => {
    const { max_uses, max_uses_per_user = null, starts_at = null, expires_at = null, email_domains = [] } = readFields(new FormData(form.current));
    const user = new FormData(form.current).get("user").trim() || null;
    const patch = { max_uses, max_uses_per_user, email_domains, user };
    // What was not touched keeps its seconds.
    if (toLocal(starts_at) !== toLocal(invite.starts_at)) patch.starts_at = starts_at;
    if (toLocal(expires_at) !== toLocal(invite.expires_at)) patch.expires_at = expires_at;
    await send("PATCH", inNamespace(ns, "invites", invite.id), patch, { "If-Match": `"${invite.revision}"` });
    done();
    close();
  });
  return html`<${Dialog} title=${`Change ${invite.code}`} close=${close}>
    <form ref=${form} onSubmit=${submit}>
      <${SharedFields} problem=${problem} invite=${invite} toLocal=${toLocal} />
      <${Field} label="Only for user" name="user" defaultValue=${invite.user ?? ""} error=${wrongIn(problem, "user")} />
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="primary" disabled=${busy}>Change it</button></footer>
    </form>
  <//>`;
}

function RollBack({ redemption, close, done }) {
  const { ns } = useHere();
  const [reason, setReason] = useState("");
  const act = async () => {
    await send("POST", inNamespace(ns, "redemptions", redemption.id, "rollback"), { reason });
    done();
  };
  return html`<${Confirm} title="Take it back" verb="Take it back" act=${act} close=${close}>
    <p>The use is free again, and <b>${redemption.user}</b> is in <b>${redemption.group}</b> no more by it.</p>
    <${Field} label="Reason" required maxlength="256" value=${reason} onInput=${(event) => setReason(event.target.value)} />
  <//>`;
}

function Redemptions({ invite, pages, changed }) {
  const { own, link } = useHere();
  const [back, setBack] = useState(null);
  const columns = [
    { head: "Use", kind: "num", cell: (row) => row.use },
    { head: "Who", cell: ({ user }) => html`<a href=${link("members", undefined, { user })}>${user}</a>` },
    { head: "When", cell: ({ redeemed_at }) => html`<${Time} at=${redeemed_at} />` },
    { head: "", cell: (row) => (row.rolled_back_at ? html`<${Badge} word="taken back" />`
      : may(own, "manage") && html`<button type="button" class="small" aria-label=${`Take back use ${row.use} of ${row.user}`} onClick=${() => setBack(row)}>Take back</button>`) },
  ];
  return html`<${Panel} title="Who">
    <${Failure} problem=${pages.problem} retry=${pages.reload} />
    ${pages.rows?.length === 0 && html`<${Empty} title="Nobody yet">Who redeems it appears here at once.<//>`}
    ${pages.rows?.length > 0 && html`<${Table} small label="Redemptions" columns=${columns} rows=${pages.rows} /><div class="below"><${Pager} pages=${pages} what="redemptions" /></div>`}
    ${back && html`<${RollBack} redemption=${back} close=${() => setBack(null)} done=${changed} />`}
  <//>`;
}

// What is known of its life, the newest first.
function timeline(invite, { changes, first }, [last]) {
  const now = Date.now();
  const points = [
    { at: invite.created_at, what: invite.batch ? "made, in a batch" : "made" },
    ...(first ? [{ at: first.redeemed_at, what: "first redeemed", who: first.user }] : []),
    ...(last && last.id !== first?.id ? [{ at: last.redeemed_at, what: `last redeemed, use ${last.use}`, who: last.user }] : []),
    ...(changes ?? []).map(({ at, action, actor, actor_name }) => ({ at, what: action === "invite_changed" ? "changed" : action, who: actor_name ?? actor })),
  ];
  if (!changes && invite.updated_at !== invite.created_at) points.push({ at: invite.updated_at, what: "last changed" });
  if (invite.starts_at) points.push({ at: invite.starts_at, what: Date.parse(invite.starts_at) > now ? "opens" : "opened" });
  if (invite.expires_at) points.push({ at: invite.expires_at, what: Date.parse(invite.expires_at) > now ? "ends" : "ended" });
  return points.sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
}

function Timeline({ invite, pages }) {
  const { ns, own } = useHere();
  // The newest redemption is on the first page, and stays known on the others.
  const newest = useRef([]);
  if (pages.number === 1 && pages.rows) newest.current = pages.rows;
  const past = useLoad(async (signal) => {
    const first = await get(withQuery(inNamespace(ns, "redemptions"), { invite: invite.id, order: "asc", limit: 1 }), signal);
    if (!may(own, "manage")) return { first: first.data[0] };
    const audit = { action: "invite_changed", limit: 1000, after: invite.created_at };
    const changes = await get(withQuery(inNamespace(ns, "audit"), audit), signal);
    return { first: first.data[0], changes: changes.data.filter(({ subject }) => subject === invite.id) };
  }, [ns, invite.id, invite.revision, invite.uses > 0]);
  return html`<${Panel} title="Timeline">
    <ol class="timeline">${timeline(invite, past.data ?? {}, newest.current).map(({ at, what, who }) => html`<li>
      <span>${what}${who && html` <span class="fine">by ${who}</span>`}</span><time class="fine" datetime=${at}>${moment(at)}</time>
    </li>`)}</ol>
  <//>`;
}

function InRedis({ invite }) {
  const { ns } = useHere();
  const commands = useLoad((signal) => get(inNamespace(ns, "invites", invite.id, "commands"), signal), [ns, invite.id]);
  return html`<${Panel} title="In Redis" wide>
    <p class="fine">What the gate holds of it, on a machine that reaches Redis. The last one asks what a redemption would be told.</p>
    <${Loaded} of=${commands} rows=${3}>${({ commands }) => commands.map((command, index) => html`<${Command} what=${`command ${index + 1}`}>${command}<//>`)}<//>
  <//>`;
}

export function Invite({ id }) {
  const { ns, own, link, go } = useHere();
  const [open, setOpen] = useState(null);
  const place = inNamespace(ns, "invites", id);
  const loaded = useLoad((signal) => get(place, signal), [place], 10_000);
  const pages = usePages(inNamespace(ns, "redemptions"), { invite: id }, { limit: 20 });
  const invite = loaded.data;
  const changed = () => (loaded.reload(), pages.reload());
  useReload(changed, ({ type, data }) => data.invite === id || data.subject === id || type === "redemption_rolled_back" || type.startsWith("reserv"));
  const close = () => setOpen(null);
  const switched = async () => send("PATCH", place, { disabled: invite.state !== "disabled" }, { "If-Match": `"${invite.revision}"` }).then(changed);
  const [toggle, deleted] = [useSubmit(switched), useRef(false)];
  const actions = invite && may(own, "manage") && html`
    <button type="button" onClick=${() => setOpen("change")}>Change</button>
    <button type="button" disabled=${toggle.busy} onClick=${toggle.submit}>${invite.state === "disabled" ? "Enable" : "Disable"}</button>
    ${invite.uses + invite.held === 0 && html`<button type="button" class="danger" onClick=${() => setOpen("delete")}>Delete</button>`}`;
  return html`
    <div class="head">
      <div><a class="crumb" href=${link("invites")}>Invites</a><h1>${invite ? html`<span class="code">${invite.code}</span> <${Badge} word=${invite.state} />` : "Invite"}</h1></div>
      ${invite && html`<div class="actions"><${Copy} large text=${invite.code} label="Copy code" /><button type="button" onClick=${() => setOpen("hand out")}>Link and QR code</button>${actions}</div>`}
    </div>
    <${Failure} problem=${toggle.problem} />
    ${invite?.stale && html`<p class="note warn" role="status">The gate can not be asked. This is what the ledger knows.</p>`}
    <${Loaded} of=${loaded} rows=${6}>${() => html`
      <section class="panel" aria-label="Uses">
        <p class="big"><b>${count(invite.uses)}</b> of ${invite.max_uses === null ? "any number of" : count(invite.max_uses)} uses spent
          ${invite.held > 0 && html`, ${count(invite.held)} held`}${invite.remaining !== null && html` · ${count(invite.remaining - invite.held)} free`}</p>
        ${invite.max_uses !== null && html`<div class="tall"><${Meter} value=${invite.uses} held=${invite.held} max=${invite.max_uses} label=${`${invite.uses} of ${invite.max_uses} spent, ${invite.held} held`} /></div>`}
        <ul class="facts two">
          <li><span>Group</span><span>${invite.group}</span></li>
          <li><span>Open</span><span>${invite.starts_at ? moment(invite.starts_at) : "at once"} – ${invite.expires_at ? moment(invite.expires_at) : "for ever"}</span></li>
          <li><span>Uses of one user</span><span>${invite.max_uses_per_user === null ? "as the namespace says" : count(invite.max_uses_per_user)}</span></li>
          <li><span>Only for</span><span>${[invite.user, ...invite.email_domains].filter(Boolean).join(", ") || "anybody"}</span></li>
          ${invite.campaign && html`<li><span>Campaign</span><span>${invite.campaign}</span></li>`}
          ${invite.batch && html`<li><span>Batch</span><span><a href=${link("invites", undefined, { batch: invite.batch })}><code>${invite.batch.slice(0, 8)}</code></a></span></li>`}
          ${invite.metadata && html`<li><span>Metadata</span><span><code>${JSON.stringify(invite.metadata)}</code></span></li>`}
        </ul>
      </section>
      <div class="columns">
        <${Redemptions} invite=${invite} pages=${pages} changed=${changed} />
        <${Timeline} invite=${invite} pages=${pages} />
        ${may(own, "manage") && html`<${InRedis} invite=${invite} />`}
      </div>`}<//>
    ${open === "hand out" && html`<${HandOut} invite=${invite} close=${close} />`}
    ${open === "change" && html`<${Change} invite=${invite} close=${close} done=${changed} />`}
    ${open === "delete" && html`<${Confirm} title=${`Delete ${invite.code}`} verb="Delete it" close=${() => (close(), deleted.current && go("invites"))}
      act=${async () => (await send("DELETE", place, undefined, { "If-Match": `"${invite.revision}"` }), (deleted.current = true))}>
      <p>Nobody has redeemed it. Its code is free again.</p><//>`}`;
}

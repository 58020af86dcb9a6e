// Invites: look for them, make one.

import { download, inNamespace, requestName, send } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { useReload } from "./live.js";
import { Badge, count, Dialog, Empty, Failure, Field, may, Meter, Pager, Select, Table, Time, useHere, usePages, useSubmit, wrongIn } from "./ui.js";

const STATES = ["active", "scheduled", "exhausted", "expired", "disabled"];

export function Uses({ invite: { uses, held, max_uses: max } }) {
  const text = max === null ? `${count(uses)} of any number` : `${count(uses)} of ${count(max)}`;
  return html`<div class="uses"><${Meter} value=${uses} held=${held ?? 0} max=${max ?? 0} label=${`${text} spent`} /><span class="num">${text}</span></div>`;
}

// What was typed, once nothing was typed for a moment.
export function Search({ label, value, change, ...control }) {
  const [text, setText] = useState(value);
  const timer = useRef();
  const told = useRef(value);
  // It was changed by something else, such as the way back.
  useEffect(() => {
    if (value !== told.current) setText((told.current = value));
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const typed = (event) => {
    setText(event.target.value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => change((told.current = event.target.value.trim())), 250);
  };
  return html`<${Field} label=${label} type="search" value=${text} onInput=${typed} ...${control} />`;
}

// The fields that an invite and an order of many share, as they are sent.
export function readFields(form) {
  const text = (name) => form.get(name)?.trim() || undefined;
  const number = (name) => (text(name) === undefined ? undefined : Number(text(name)));
  const time = (name) => (text(name) === undefined ? undefined : new Date(text(name)).toISOString());
  return {
    group: text("group"),
    max_uses: number("max_uses") ?? null,
    max_uses_per_user: number("max_uses_per_user"),
    campaign: text("campaign"),
    starts_at: time("starts_at"),
    expires_at: time("expires_at"),
    email_domains: text("email_domains")?.split(/[\s,]+/),
  };
}

// With what they are in an invite that there is.
export function SharedFields({ problem, invite, toLocal }) {
  const wrong = (field) => wrongIn(problem, field);
  const known = invite && { ...invite, starts_at: toLocal(invite.starts_at), expires_at: toLocal(invite.expires_at), email_domains: invite.email_domains.join(", ") };
  const own = (field) => ({ name: field, defaultValue: known?.[field] ?? "", error: wrong(field) });
  return html`
    ${!invite && html`<${Field} label="Group" ...${own("group")} required hint="What a redemption lets the user into." />`}
    <div class="pair">
      <${Field} label="Uses" type="number" min="1" ...${own("max_uses")} ...${invite ? {} : { defaultValue: "1" }} hint="Empty: without limit." />
      <${Field} label="Uses of one user" type="number" min="1" ...${own("max_uses_per_user")} />
    </div>
    <div class="pair">
      <${Field} label="Starts" type="datetime-local" ...${own("starts_at")} />
      <${Field} label="Ends" type="datetime-local" ...${own("expires_at")} />
    </div>
    <div class="pair">
      <${Field} label="E-mail domains" ...${own("email_domains")} hint="Only users of these, with commas between." />
      ${!invite && html`<${Field} label="Campaign" ...${own("campaign")} hint="A limit that it shares." />`}
    </div>`;
}

function Create({ close, made }) {
  const { ns } = useHere();
  const form = useRef();
  const request = useRef(requestName());
  const { busy, problem, submit } = useSubmit(async () => {
    const fields = new FormData(form.current);
    const body = { code: fields.get("code").trim() || undefined, user: fields.get("user").trim() || undefined, ...readFields(fields) };
    made(await send("POST", inNamespace(ns, "invites"), body, { "Idempotency-Key": request.current }));
  });
  // Other fields are another request.
  const changed = () => (request.current = requestName());
  return html`<${Dialog} title="New invite" close=${close}>
    <form ref=${form} onSubmit=${submit} onInput=${changed}>
      <${Field} label="Code" name="code" maxlength="64" hint="Made up when left out." error=${wrongIn(problem, "code")} autofocus />
      <${SharedFields} problem=${problem} />
      <${Field} label="Only for user" name="user" error=${wrongIn(problem, "user")} />
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="primary" disabled=${busy}>Make it</button></footer>
    </form>
  <//>`;
}

export function Invites({ query }) {
  const { ns, own, link, go, filter } = useHere();
  const [open, setOpen] = useState(null);
  const set = (change) => filter({ ...query, ...change });
  const { prefix, state, group, batch } = query;
  const pages = usePages(inNamespace(ns, "invites"), { prefix, state, group, batch });
  useReload(pages.reload, ({ type }) => type === "redeemed" || type === "redemption_rolled_back" || type.startsWith("invite"));
  const columns = [
    { head: "Code", cell: ({ id, code }) => html`<a class="code" href=${link("invites", id)}>${code}</a>` },
    { head: "State", cell: ({ state }) => html`<${Badge} word=${state} />` },
    { head: "Uses", kind: "wide", cell: (invite) => html`<${Uses} invite=${invite} />` },
    { head: "Group", cell: ({ group }) => group },
    { head: "Ends", cell: ({ expires_at }) => html`<${Time} at=${expires_at} none="never" />` },
    { head: "Changed", cell: ({ updated_at }) => html`<${Time} at=${updated_at} />` },
  ];
  const saved = useSubmit(() => download(inNamespace(ns, "export", "invites") + "?spreadsheet=true", `${ns}-invites.csv`, "text/csv"));
  const isFiltered = prefix || state || group || batch;
  return html`
    <div class="head"><h1>Invites</h1>
      <div class="actions"><button type="button" disabled=${saved.busy} onClick=${saved.submit}>${saved.busy ? "Downloading…" : "Download CSV"}</button>
        ${may(own, "manage") && html`<a class="button" href=${link("batches")}>Codes in bulk</a><button type="button" class="primary" onClick=${() => setOpen("create")}>New invite</button>`}</div>
    </div>
    <search class="filters">
      <${Search} label="Code begins with" value=${prefix ?? ""} change=${(prefix) => set({ prefix })} />
      <${Select} label="State" value=${state ?? ""} options=${[["", "Any"], ...STATES.map((state) => [state, state])]} onChange=${(event) => set({ state: event.target.value })} />
      <${Search} label="Group" value=${group ?? ""} change=${(group) => set({ group })} />
      ${isFiltered && html`<button type="button" onClick=${() => filter({})}>All invites</button>`}
    </search>
    <${Failure} problem=${pages.problem ?? saved.problem} retry=${pages.problem && pages.reload} />
    ${pages.rows?.length > 0 && html`<${Table} label="Invites" columns=${columns} rows=${pages.rows} />`}
    ${pages.rows?.length === 0 && (isFiltered
      ? html`<${Empty} title="No invite is like that">Codes are looked for from their beginning, as they are kept.<//>`
      : html`<${Empty} title="No invites yet">Make one here, with <code>redeemer invite create</code>, or many at once.<//>`)}
    ${pages.rows && html`<${Pager} pages=${pages} what="invites" />`}
    ${open === "create" && html`<${Create} close=${() => setOpen(null)} made=${({ id }) => (setOpen(null), go("invites", id))} />`}`;
}

// Codes in bulk: order them, watch them being made, download them.

import { download, get, inNamespace, requestName, send } from "./api.js";
import { html, useRef, useState } from "./html.js";
import { readFields, SharedFields } from "./invites.js";
import { Badge, brief, count, Dialog, Empty, Failure, Field, lasted, Loaded, Meter, moment, Pager, Panel, Select, Table, Time, useHere, useLoad, usePages, useSubmit, wrongIn } from "./ui.js";

const LOOK_MS = 500;
const ALPHABETS = [["unambiguous", "Letters and digits, none alike"], ["digits", "Digits"], ["letters", "Letters, none alike"]];

function Order({ close, made }) {
  const { ns } = useHere();
  const form = useRef();
  const request = useRef(requestName());
  const { busy, problem, submit } = useSubmit(async () => {
    const fields = new FormData(form.current);
    const body = { count: Number(fields.get("count")), pattern: fields.get("pattern").trim(), alphabet: fields.get("alphabet"), ...readFields(fields) };
    made(await send("POST", inNamespace(ns, "batches"), body, { "Idempotency-Key": request.current }));
  });
  // Other fields are another request.
  const changed = () => (request.current = requestName());
  return html`<${Dialog} title="Codes in bulk" close=${close}>
    <form ref=${form} onSubmit=${submit} onInput=${changed}>
      <div class="pair">
        <${Field} label="How many" name="count" type="number" min="1" max="10000000" required defaultValue="1000" error=${wrongIn(problem, "count")} autofocus />
        <${Select} label="Random characters" name="alphabet" options=${ALPHABETS} error=${wrongIn(problem, "alphabet")} />
      </div>
      <${Field} label="Pattern" name="pattern" required maxlength="64" defaultValue="SPRING-####-####" error=${wrongIn(problem, "pattern")}
        hint="# is a random character, * at the end a check character." />
      <${SharedFields} problem=${problem} />
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="primary" disabled=${busy}>Order them</button></footer>
    </form>
  <//>`;
}

function One({ id }) {
  const { ns, link } = useHere();
  const [isOver, setOver] = useState(false);
  const place = inNamespace(ns, "batches", id);
  const loaded = useLoad(async (signal) => {
    const batch = await get(place, signal);
    setOver(batch.state === "finished" || batch.state === "failed");
    return batch;
  }, [place], isOver ? undefined : LOOK_MS);
  const csv = useSubmit(() => download(`${place}/codes`, `${id}.csv`, "text/csv"));
  const json = useSubmit(() => download(`${place}/codes`, `${id}.ndjson`, "application/x-ndjson"));
  return html`
    <div class="head"><div><a class="crumb" href=${link("batches")}>Batches</a><h1>${loaded.data ? html`<span class="code">${loaded.data.pattern}</span> <${Badge} word=${loaded.data.state} />` : "Batch"}</h1></div>
      ${loaded.data?.done > 0 && html`<div class="actions">
        <a class="button" href=${link("invites", undefined, { batch: id })}>Its invites</a>
        <button type="button" disabled=${csv.busy} onClick=${csv.submit}>${csv.busy ? "Downloading…" : "Download CSV"}</button>
        <button type="button" disabled=${json.busy} onClick=${json.submit}>${json.busy ? "Downloading…" : "Download NDJSON"}</button>
      </div>`}
    </div>
    <${Failure} problem=${csv.problem ?? json.problem} />
    <${Loaded} of=${loaded}>${(batch) => {
      const seconds = batch.started_at ? (Date.parse(batch.finished_at ?? new Date().toISOString()) - Date.parse(batch.started_at)) / 1000 : 0;
      return html`<section class="panel" aria-label="Progress">
        <p class="big" role="status"><b>${count(batch.done)}</b> of ${count(batch.count)} codes made${seconds > 0.5 && html` · ${brief(Math.round(batch.done / seconds))} a second`}</p>
        <div class="tall"><${Meter} value=${batch.done} max=${batch.count} label=${`${batch.done} of ${batch.count} made`} /></div>
        ${batch.reason && html`<p class="note bad">${batch.reason}</p>`}
        <ul class="facts two">
          <li><span>Group</span><span>${batch.group}</span></li>
          <li><span>Uses of each</span><span>${batch.max_uses === null ? "any number" : count(batch.max_uses)}</span></li>
          <li><span>Ordered</span><span>${moment(batch.created_at)}, by <code>${batch.created_by}</code></span></li>
          <li><span>Finished</span><span>${batch.finished_at ? `${moment(batch.finished_at)}, in ${lasted(seconds)}` : "not yet"}</span></li>
          ${batch.expires_at && html`<li><span>Ends</span><span>${moment(batch.expires_at)}</span></li>`}
          ${batch.campaign && html`<li><span>Campaign</span><span>${batch.campaign}</span></li>`}
        </ul>
      </section>`;
    }}<//>`;
}

function All() {
  const { ns, link, go } = useHere();
  const [open, setOpen] = useState(false);
  // The log of changes has each order; its subject is the batch and how many.
  const pages = usePages(inNamespace(ns, "audit"), { action: "batch_ordered" });
  const columns = [
    { head: "Batch", cell: ({ subject }) => html`<a href=${link("batches", subject.split(/[ ,]/)[0])}><code>${subject.split(/[ ,]/)[0]}</code></a>` },
    { head: "Ordered", cell: ({ subject }) => subject.replace(/^\S+?[ ,]+/, "") },
    { head: "By", cell: ({ actor, actor_name }) => actor_name ?? html`<code>${actor}</code>` },
    { head: "When", cell: ({ at }) => html`<${Time} at=${at} />` },
  ];
  return html`
    <div class="head"><h1>Batches</h1><div class="actions"><button type="button" class="primary" onClick=${() => setOpen(true)}>Codes in bulk</button></div></div>
    <${Failure} problem=${pages.problem} retry=${pages.reload} />
    ${pages.rows?.length === 0 && html`<${Empty} title="No batches yet">Up to ten million codes at once, no two alike, none that can be guessed.<//>`}
    ${pages.rows?.length > 0 && html`<${Table} label="Batches" columns=${columns} rows=${pages.rows} />`}
    <${Pager} pages=${pages} what="batches" />
    ${open && html`<${Order} close=${() => setOpen(false)} made=${({ id }) => go("batches", id)} />`}`;
}

export const Batches = ({ id }) => (id ? html`<${One} key=${id} id=${id} />` : html`<${All} />`);

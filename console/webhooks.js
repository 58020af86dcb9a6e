// Receivers of what happens, and what was sent to them.

import { get, inNamespace, requestName, send } from "./api.js";
import { html, useRef, useState } from "./html.js";
import { Badge, Command, Confirm, Dialog, Empty, Failure, Field, Loaded, moment, Pager, Panel, Select, Table, Time, useHere, useLoad, usePages, useSubmit, wrongIn } from "./ui.js";

const LOOK_MS = 3000;

function Create({ close, done }) {
  const { ns } = useHere();
  const [{ url, types }, set] = useState({ url: "", types: "" });
  const [made, setMade] = useState(null);
  const request = useRef(requestName());
  const { busy, problem, submit } = useSubmit(async () => {
    const event_types = types.trim() ? types.trim().split(/[\s,]+/) : null;
    setMade(await send("POST", inNamespace(ns, "webhooks"), { url: url.trim(), event_types }, { "Idempotency-Key": request.current }));
    done();
  });
  if (made) return html`<${Secret} secret=${made.secret} close=${close} />`;
  const change = (change) => (set({ url, types, ...change }), (request.current = requestName()));
  return html`<${Dialog} title="New webhook" close=${close}>
    <form onSubmit=${submit}>
      <${Field} label="URL" type="url" required placeholder="https://" value=${url} onInput=${(event) => change({ url: event.target.value })} error=${wrongIn(problem, "url")} autofocus />
      <${Field} label="Events" value=${types} onInput=${(event) => change({ types: event.target.value })} error=${wrongIn(problem, "event_types")} hint="Such as redeemed, invite_changed, with commas between. Empty: all." />
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="primary" disabled=${busy}>Make it</button></footer>
    </form>
  <//>`;
}

const Secret = ({ secret, close }) => html`<${Dialog} title="Its secret" close=${close}>
  <div class="body"><p>Messages are signed with it. It is shown this once: keep it where the receiver finds it.</p>
    <${Command} what="the secret">${secret}<//>
    <footer><button type="button" class="primary" onClick=${close}>I have it</button></footer></div>
<//>`;

function One({ id, query }) {
  const { ns, link, go, filter } = useHere();
  const [open, setOpen] = useState(null);
  const place = inNamespace(ns, "webhooks", id);
  const loaded = useLoad((signal) => get(place, signal), [place], LOOK_MS);
  const pages = usePages(`${place}/deliveries`, { state: query.state }, { every: LOOK_MS });
  const webhook = loaded.data;
  const close = () => setOpen(null);
  const toggle = useSubmit(() => send("PATCH", place, { disabled: webhook.state !== "disabled" }).then(loaded.reload));
  const retry = useSubmit(() => send("POST", inNamespace(ns, "deliveries", retry.id, "retry"), {}).then(pages.reload));
  const columns = [
    { head: "Event", cell: ({ type, event }) => html`${type.replaceAll("_", " ")} <span class="fine">${event}</span>` },
    { head: "State", cell: ({ state }) => html`<${Badge} word=${state} />` },
    { head: "Attempts", kind: "num", cell: ({ attempts }) => attempts },
    { head: "Last answer", cell: ({ response_status, error }) => (response_status ?? error ? html`${response_status ?? ""} <span class="fine">${error ?? ""}</span>` : "–") },
    { head: "Next", cell: ({ next_attempt_at }) => html`<${Time} at=${next_attempt_at} />` },
    { head: "", cell: ({ id, type }) => html`<button type="button" class="small" disabled=${retry.busy} aria-label=${`Send ${type} again`} onClick=${() => ((retry.id = id), retry.submit())}>Send again</button>` },
  ];
  return html`
    <div class="head"><div><a class="crumb" href=${link("webhooks")}>Webhooks</a><h1>${webhook ? html`<span class="long">${webhook.url}</span> <${Badge} word=${webhook.state} />` : "Webhook"}</h1></div>
      ${webhook && html`<div class="actions"><button type="button" disabled=${toggle.busy} onClick=${toggle.submit}>${webhook.state === "disabled" ? "Enable" : "Disable"}</button>
        <button type="button" onClick=${() => setOpen("rotate")}>New secret</button><button type="button" class="danger" onClick=${() => setOpen("delete")}>Delete</button></div>`}</div>
    <${Failure} problem=${toggle.problem ?? retry.problem} />
    <${Loaded} of=${loaded}>${(webhook) => html`<section class="panel" aria-label="About it"><ul class="facts two">
      <li><span>Events</span><span>${webhook.event_types?.join(", ") ?? "all"}</span></li>
      <li><span>Everything has its delivery up to</span><span><code>${webhook.position}</code></span></li>
      <li><span>Failing since</span><span>${webhook.failing_since ? moment(webhook.failing_since) : "not failing"}</span></li>
      <li><span>Made</span><span>${moment(webhook.created_at)}</span></li>
      ${webhook.reason && html`<li><span>Disabled because</span><span>${webhook.reason}</span></li>`}</ul></section>`}<//>
    <div class="head"><h2>Deliveries</h2><${Select} label="State" value=${query.state ?? ""} options=${[["", "Any"], ["waiting", "waiting"], ["delivered", "delivered"], ["failed", "failed"]]} onChange=${(event) => filter({ state: event.target.value })} /></div>
    <${Failure} problem=${pages.problem} retry=${pages.reload} />
    ${pages.rows?.length === 0 && html`<${Empty} title="No deliveries">Each event of these kinds gets one.<//>`}
    ${pages.rows?.length > 0 && html`<${Table} label="Deliveries" columns=${columns} rows=${pages.rows} />`}
    <${Pager} pages=${pages} what="deliveries" />
    ${open === "rotate" && html`<${Confirm} title="A new secret" verb="Make it" close=${close} act=${async () => {
      const { secret } = await send("POST", `${place}/rotate-secret`, {});
      setTimeout(() => setOpen({ secret }));
    }}><p>The old one signs too for a while (<code>webhooks.secret_overlap_seconds</code>).</p><//>`}
    ${open?.secret && html`<${Secret} secret=${open.secret} close=${close} />`}
    ${open === "delete" && html`<${Confirm} title="Delete the webhook" verb="Delete it" close=${close} act=${async () => (await send("DELETE", place), setTimeout(() => go("webhooks")))}>
      <p>Nothing more is sent to <b>${webhook.url}</b>, and its deliveries are forgotten.</p><//>`}`;
}

function All() {
  const { ns, link } = useHere();
  const [open, setOpen] = useState(false);
  const pages = usePages(inNamespace(ns, "webhooks"), {}, { every: LOOK_MS });
  const columns = [
    { head: "URL", cell: ({ id, url }) => html`<a class="long" href=${link("webhooks", id)}>${url}</a>` },
    { head: "State", cell: ({ state }) => html`<${Badge} word=${state} />` },
    { head: "Events", cell: ({ event_types }) => event_types?.join(", ") ?? "all" },
    { head: "Failing since", cell: ({ failing_since }) => html`<${Time} at=${failing_since} />` },
    { head: "Made", cell: ({ created_at }) => html`<${Time} at=${created_at} />` },
  ];
  return html`
    <div class="head"><h1>Webhooks</h1><div class="actions"><button type="button" class="primary" onClick=${() => setOpen(true)}>New webhook</button></div></div>
    <${Failure} problem=${pages.problem} retry=${pages.reload} />
    ${pages.rows?.length === 0 && html`<${Empty} title="No webhooks yet">A receiver is told of each event, signed, and again until it has it.<//>`}
    ${pages.rows?.length > 0 && html`<${Table} label="Webhooks" columns=${columns} rows=${pages.rows} />`}
    <${Pager} pages=${pages} what="webhooks" />
    ${open && html`<${Create} close=${() => setOpen(false)} done=${pages.reload} />`}`;
}

export const Webhooks = ({ id, query }) => (id ? html`<${One} key=${id} id=${id} query=${query} />` : html`<${All} />`);

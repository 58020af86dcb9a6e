// What happens in the namespace, as it happens.

import { follow } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Badge, Empty, Failure, Time, useHere } from "./ui.js";

// Events that are kept on the page.
const KEPT = 200;
// Events of a rush are shown together, a few times a second.
const DRAW_MS = 150;
// After something has happened.
const RELOAD_MS = 300;

// Calls told(event) for each event of the namespace from now on. Says why there is no stream, if there is none.
export function useEvents(told) {
  const { ns } = useHere();
  const [state, setState] = useState({ isOpen: false, problem: null });
  const latest = useRef();
  latest.current = told;
  useEffect(() => {
    const stop = new AbortController();
    follow(ns, {
      signal: stop.signal,
      onEvent: (event) => latest.current(event),
      onState: (problem) => setState({ isOpen: !problem, problem }),
    });
    return () => stop.abort();
  }, [ns]);
  return state;
}

// Reloads what the ledger has once it has something that concerns(event), and after a stream was cut; however much
// happens, a few times a second.
export function useReload(reload, concerns) {
  const timer = useRef(null);
  const latest = useRef();
  latest.current = reload;
  const soon = () => {
    timer.current ??= setTimeout(() => {
      timer.current = null;
      latest.current();
    }, RELOAD_MS);
  };
  const { isOpen } = useEvents((event) => concerns(event) && soon());
  useEffect(() => {
    if (isOpen) soon();
  }, [isOpen]);
  useEffect(() => () => clearTimeout(timer.current), []);
}

const TONES = { redeemed: "good", redemption_rolled_back: "warn", left: "warn", user_erased: "warn", invite_deleted: "warn" };

export function Live() {
  const { ns, link } = useHere();
  const [events, setEvents] = useState([]);
  const [paused, setPaused] = useState(false);
  const waiting = useRef([]);
  const { isOpen, problem } = useEvents((event) => {
    waiting.current.push({ ...event, at: event.data.redeemed_at ?? event.data.at });
    if (waiting.current.length > 2 * KEPT) waiting.current.splice(0, KEPT);
  });
  useEffect(() => {
    if (paused) return undefined;
    const timer = setInterval(() => {
      if (!waiting.current.length) return;
      const fresh = waiting.current.splice(0).slice(-KEPT).reverse();
      setEvents((events) => [...fresh, ...events].slice(0, KEPT));
    }, DRAW_MS);
    return () => clearInterval(timer);
  }, [paused]);
  const tell = ({ type, data }) => type === "redeemed"
    ? html`<b>${data.user}</b> is in <b>${data.group}</b> by <a class="code" href=${link("invites", data.invite)}>${data.code}</a> <span class="fine">use ${data.use}${data.remaining === null ? "" : `, ${data.remaining} left`}</span>`
    : html`${type.startsWith("invite_") && type !== "invite_deleted" ? html`<a href=${link("invites", data.subject)}><code>${data.subject}</code></a>` : data.subject} <span class="fine">by ${data.actor}</span>`;
  return html`
    <div class="head"><h1>Live <${Badge} word=${paused ? "paused" : isOpen ? "connected" : "connecting"} tone=${paused ? "dim" : isOpen ? "good" : "warn"} /></h1>
      <div class="actions"><button type="button" aria-pressed=${paused} onClick=${() => setPaused(!paused)}>${paused ? "Go on" : "Pause"}</button>
      <button type="button" disabled=${!events.length} onClick=${() => setEvents([])}>Clear</button></div></div>
    <${Failure} problem=${problem} />
    ${events.length === 0 ? html`<${Empty} title="Nothing has happened yet">Redemptions and changes in <b>${ns}</b> appear here as soon as the ledger has them.<//>`
      : html`<ol class="feed panel" aria-label="Events" aria-live="off">
        ${events.map((event) => html`<li key=${event.id}><span class="fine"><${Time} at=${event.at} /></span><span><${Badge} word=${event.type.replaceAll("_", " ")} tone=${TONES[event.type] ?? "info"} /></span><span>${tell(event)}</span></li>`)}
      </ol>`}`;
}

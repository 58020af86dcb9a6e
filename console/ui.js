// What all screens share: loading and lists, and the small parts that they are made of.

import { get, withQuery } from "./api.js";
import { createContext, html, useContext, useEffect, useId, useLayoutEffect, useRef, useState } from "./html.js";

// Who has signed in, in which namespace, and how to go elsewhere.
export const Here = createContext(null);
export const useHere = () => useContext(Here);

const ROLES = { read: ["read"], manage: ["read", "redeem", "manage"], admin: ["read", "redeem", "manage", "admin"] };
export const may = (own, role) => (ROLES[own.role] ?? []).includes(role);

// Numbers and times

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export const count = (number) => (number === null || number === undefined ? "–" : whole.format(number));
export const brief = (number) => (number < 10_000 ? whole.format(number) : short.format(number));
export const share = (part, all) => (all ? `${((100 * part) / all).toFixed(part === all ? 0 : 1)} %` : "–");

export function lasted(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export function Time({ at, none = "–" }) {
  if (!at) return none;
  const time = new Date(at);
  const isToday = Math.abs(Date.now() - time) < 12 * 3600_000;
  return html`<time datetime=${at} title=${exact.format(time)}>${isToday ? clock.format(time) : day.format(time)}</time>`;
}

export const moment = (at) => exact.format(new Date(at));

// Loading

// What load(signal) gives, again every so many milliseconds while somebody looks. What was there before stays when it
// fails, next to the problem.
export function useLoad(load, inputs, every) {
  const [state, setState] = useState({ data: undefined, problem: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    let timer;
    let isFirst = true;
    const run = async () => {
      if (isFirst || !document.hidden) {
        isFirst = false;
        try {
          const data = await load(stop.signal);
          if (!stop.signal.aborted) setState({ data, problem: null });
        } catch (problem) {
          if (!stop.signal.aborted) setState(({ data }) => ({ data, problem }));
        }
      }
      if (every && !stop.signal.aborted) timer = setTimeout(run, every);
    };
    run();
    return () => (stop.abort(), clearTimeout(timer));
  }, [...inputs, turn]);
  // Other inputs, other data.
  const forgotten = useRef(inputs);
  const isOther = inputs.some((input, index) => input !== forgotten.current[index]);
  useLayoutEffect(() => {
    if (!isOther) return;
    forgotten.current = inputs;
    setState({ data: undefined, problem: null });
  });
  return { ...(isOther ? { data: undefined, problem: null } : state), reload: () => setTurn((turn) => turn + 1) };
}

// A list, a page at a time: the cursors of the pages before are kept to go back.
export function usePages(place, parameters, { limit = 50, every } = {}) {
  const [cursors, setCursors] = useState([]);
  const first = withQuery(place, { ...parameters, limit });
  const known = useRef(first);
  // The place is another one: its first page.
  const trail = known.current === first ? cursors : [];
  useLayoutEffect(() => {
    if (known.current === first) return;
    known.current = first;
    setCursors([]);
  });
  const page = withQuery(place, { ...parameters, limit, cursor: trail.at(-1) });
  const { data, problem, reload } = useLoad((signal) => get(page, signal), [page], every);
  return {
    rows: data?.data,
    asOf: data?.as_of,
    problem,
    reload,
    number: trail.length + 1,
    back: trail.length ? () => setCursors(trail.slice(0, -1)) : null,
    next: data?.next_cursor ? () => setCursors([...trail, data.next_cursor]) : null,
  };
}

// Parts

export function Failure({ problem, retry }) {
  if (!problem) return null;
  const title = problem.isFenced
    ? "The gate serves nobody right now"
    : problem.status === 403 ? "This key may not see that" : "That did not work";
  return html`<div class=${`note ${problem.isFenced ? "warn" : "bad"}`} role="alert">
    <div>
      <strong>${title}</strong>
      <p>${problem.message}</p>
      ${problem.code && html`<p class="fine"><code>${problem.code}</code>${problem.requestId && html` · request <code>${problem.requestId}</code>`}</p>`}
    </div>
    ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}
  </div>`;
}

export const Loading = ({ rows = 4 }) =>
  html`<div class="loading" role="status" aria-label="Loading">${Array.from({ length: rows }, () => html`<i></i>`)}</div>`;

export const Empty = ({ title, children }) => html`<div class="empty"><strong>${title}</strong><p>${children}</p></div>`;

// What was loaded, or that it is being loaded, or why not. children is a function of the data.
export function Loaded({ of: { data, problem, reload }, rows, children }) {
  return html`${problem && html`<${Failure} problem=${problem} retry=${reload} />`}
    ${data !== undefined ? children(data) : problem ? null : html`<${Loading} rows=${rows} />`}`;
}

const TONES = {
  active: "good", open: "good", ok: "good", delivered: "good", finished: "good",
  scheduled: "info", running: "info", waiting: "info", new: "info",
  exhausted: "warn", failing: "warn", expired: "dim", disabled: "dim", archived: "dim",
  closed: "bad", failed: "bad", "not ok": "bad",
};

export const Badge = ({ word, tone }) => html`<span class=${`badge ${tone ?? TONES[word] ?? "dim"}`}>${word}</span>`;

export function Panel({ title, actions, children, wide }) {
  const id = useId();
  return html`<section class=${`panel${wide ? " wide" : ""}`} aria-labelledby=${id}>
    <header><h2 id=${id}>${title}</h2>${actions && html`<div class="actions">${actions}</div>`}</header>
    ${children}
  </section>`;
}

// A table whose rows become cards on a phone, unless it is a small one. Columns: {head, cell(row), kind}, where kind is
// num or nothing.
export function Table({ label, columns, rows, small, id = (row) => row.id }) {
  return html`<div class=${small ? "table" : "table cards"}><table aria-label=${label}>
    <thead><tr>${columns.map(({ head, kind }) => html`<th scope="col" class=${kind}>${head}</th>`)}</tr></thead>
    <tbody>
      ${rows.map((row) => html`<tr key=${id(row)}>
        ${columns.map(({ head, cell, kind }) => html`<td class=${kind} data-head=${head}>${cell(row)}</td>`)}
      </tr>`)}
    </tbody>
  </table></div>`;
}

export function Pager({ pages, what = "rows" }) {
  const { rows, number, back, next, asOf } = pages;
  if (!rows) return null;
  return html`<footer class="pager">
    <span class="fine">${rows.length} ${what}${number > 1 || next ? `, page ${number}` : ""}${asOf ? html` · as of <${Time} at=${asOf} />` : ""}</span>
    ${(back || next) && html`<span class="actions">
      <button type="button" disabled=${!back} onClick=${back}>Previous</button>
      <button type="button" disabled=${!next} onClick=${next}>Next</button>
    </span>`}
  </footer>`;
}

// How full something is; what is held is shown behind what is spent.
export function Meter({ value, held = 0, max, label }) {
  const percent = (part) => `${max ? Math.min(100, (100 * part) / max) : 0}%`;
  return html`<div class="meter" role="img" aria-label=${label}>
    <i class="held" style=${{ width: percent(value + held) }}></i>
    <i class="spent" style=${{ width: percent(value) }}></i>
  </div>`;
}

async function toClipboard(text) {
  // Only there on HTTPS and this machine.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not copy");
}

export function Copy({ text, label = "Copy", what, large }) {
  const [told, setTold] = useState("");
  useEffect(() => {
    if (!told) return undefined;
    const timer = setTimeout(() => setTold(""), 1500);
    return () => clearTimeout(timer);
  }, [told]);
  const copy = () => toClipboard(text).then(() => setTold("Copied"), () => setTold("Copy it by hand"));
  return html`<button type="button" class=${large ? undefined : "small"} aria-label=${what && `${label} ${what}`} onClick=${copy}>
    <span aria-live="polite">${told || label}</span>
  </button>`;
}

export const Command = ({ children, what }) =>
  html`<div class="command"><code tabindex="0">${children}</code><${Copy} text=${children} what=${what} /></div>`;

// Forms

// A field with its label, its hint and what is wrong with it. children gets {id, described} for its control.
export function Field({ label, hint, error, children, ...control }) {
  const id = useId();
  const note = error ?? hint;
  const own = { id, "aria-describedby": note ? `${id}-note` : undefined, "aria-invalid": error ? "true" : undefined };
  return html`<div class=${`field${error ? " wrong" : ""}`}>
    <label for=${id}>${label}</label>
    ${children ? children(own) : html`<input type="text" autocomplete="off" spellcheck=${false} ...${own} ...${control} />`}
    ${note && html`<p class="hint" id=${`${id}-note`}>${note}</p>`}
  </div>`;
}

export const Select = ({ label, hint, error, options, ...control }) => html`<${Field} label=${label} hint=${hint} error=${error}>
  ${(own) => html`<select ...${own} ...${control}>
    ${options.map(([value, text]) => html`<option value=${value} selected=${value === control.value}>${text}</option>`)}
  </select>`}
<//>`;

// What a problem says of a field of the body.
export const wrongIn = (problem, field) =>
  problem?.errors?.find(({ pointer }) => pointer === `#/${field}` || pointer === `/${field}` || pointer === field)?.detail;

// Sends a form once at a time: {busy, problem, submit}.
export function useSubmit(act) {
  const [state, setState] = useState({ busy: false, problem: null });
  const submit = async (event) => {
    event?.preventDefault();
    if (state.busy) return;
    setState({ busy: true, problem: null });
    try {
      await act();
      setState({ busy: false, problem: null });
    } catch (problem) {
      setState({ busy: false, problem });
    }
  };
  return { ...state, submit };
}

// A dialog over the page; Escape closes it, and the focus goes back to where it was.
export function Dialog({ title, close, children }) {
  const place = useRef();
  const gone = useRef(false);
  const id = useId();
  // Escape, or the browser's own ways.
  const closed = () => !gone.current && close();
  useLayoutEffect(() => {
    const dialog = place.current;
    dialog.showModal();
    // While it is open, nothing else can have the focus.
    return () => {
      gone.current = true;
      dialog.close();
    };
  }, []);
  return html`<dialog ref=${place} aria-labelledby=${id} onClose=${closed}>
    <header><h2 id=${id}>${title}</h2><button type="button" class="small" aria-label="Close" onClick=${close}>✕</button></header>
    ${children}
  </dialog>`;
}

// Asks before something that can not be taken back.
export function Confirm({ title, children, verb, act, close }) {
  const { busy, problem, submit } = useSubmit(async () => {
    await act();
    close();
  });
  return html`<${Dialog} title=${title} close=${close}>
    <form onSubmit=${submit}>
      <div class="prose">${children}</div>
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="danger" disabled=${busy}>${verb}</button></footer>
    </form>
  <//>`;
}

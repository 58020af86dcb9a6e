// The API, as any client uses it, with the key of whoever has signed in.
//
// The key is kept in memory and, if its owner likes, in this tab's session storage, which ends with the tab. It goes
// into the header Authorization and nowhere else: never into an address, so the event stream is read with fetch, too.

const PLACE = "redeemer.key";
const RECONNECT_MS = 1000;
let key = sessionStorage.getItem(PLACE);
let onSignedOut = () => {};

// An answer that is not a success, or that there was none.
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `The service answered ${status}.`);
    this.status = status;
    this.code = body.code;
    this.requestId = body.request_id;
    this.errors = body.errors ?? [];
    this.body = body;
  }

  // Whether the same request may fare better later.
  get isRetryable() {
    return this.status === 0 || this.body.retryable === true;
  }

  // Whether the gate serves nobody now.
  get isFenced() {
    return this.code === "fenced" || this.code === "gate_unavailable";
  }
}

export const hasKey = () => key !== null;

// What is told when a key opens nothing any more.
export function whenSignedOut(tell) {
  onSignedOut = tell;
}

export function signOut() {
  key = null;
  sessionStorage.removeItem(PLACE);
}

// The key as the service knows it: its role and namespaces.
const OWN = "/v1/keys/self";
export const ownKey = () => get(OWN);

export async function signIn(text, keep) {
  key = text.trim();
  try {
    const own = await ownKey();
    if (keep) sessionStorage.setItem(PLACE, key);
    return own;
  } catch (problem) {
    signOut();
    throw problem;
  }
}

// A name for a request, so that a repeat changes nothing. randomUUID is only there on HTTPS and this machine.
export function requestName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const path = (...parts) => "/" + parts.map(encodeURIComponent).join("/");
export const inNamespace = (ns, ...parts) => path("v1", "namespaces", ns, ...parts);

// A path with those parameters that have a value.
export function withQuery(place, parameters) {
  const set = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return set.length ? `${place}?${new URLSearchParams(set)}` : place;
}

async function ask(method, place, { body, headers, signal } = {}) {
  const options = { method, signal, cache: "no-store", credentials: "omit", redirect: "error", headers: { ...headers } };
  if (key !== null) options.headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(place, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { code: "no_answer", detail: "The service does not answer. Is it running, and reachable from here?" });
  }
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
  if (problem.status === 401 && key !== null && place !== OWN) {
    signOut();
    onSignedOut();
  }
  throw problem;
}

export const get = async (place, signal) => (await ask("GET", place, { signal })).json();

export const getText = async (place, signal) => (await ask("GET", place, { signal })).text();

// What is changed, with headers such as Idempotency-Key or If-Match. Null for an answer without a body.
export async function send(method, place, body, headers) {
  const answer = await ask(method, place, { body, headers });
  return answer.status === 204 ? null : answer.json();
}

// The checks of this node. A node that is not ready says so with a 503 that has them too.
export async function readiness(signal) {
  try {
    return await get("/readyz?verbose=true", signal);
  } catch (problem) {
    if (problem.body?.checks) return problem.body;
    throw problem;
  }
}

// Saves a download, which needs the key, under a name.
export async function download(place, name, type) {
  const answer = await ask("GET", place, { headers: { Accept: type } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  // The browser has to have begun by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Blocks of a stream of server-sent events: {id, event, data}.
// Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
async function* blocks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const block = {};
        for (const line of text.slice(0, end).split("\n")) {
          const colon = line.indexOf(":");
          if (colon > 0) block[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
        }
        text = text.slice(end + 2);
        yield block;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

// What happens in a namespace until the signal: onEvent gets each event, onState whether the stream is there. A stream
// that was cut goes on behind the last event.
export async function follow(ns, { onEvent, onState, signal }) {
  let last;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream" };
      if (last) headers["Last-Event-ID"] = last;
      const answer = await ask("GET", inNamespace(ns, "events"), { headers, signal });
      onState(null);
      for await (const { id, event, data } of blocks(answer.body)) {
        if (id) last = id;
        if (data) onEvent({ id, type: event, data: JSON.parse(data) });
      }
    } catch (problem) {
      if (signal.aborted) return;
      onState(problem);
      if (problem.status && !problem.isRetryable) return;
    }
    await pause(RECONNECT_MS, signal);
  }
}

// Is it healthy, how fast, who was refused and why?

import { get, getText, inNamespace, readiness, withQuery } from "./api.js";
import { Bars } from "./chart.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Badge, brief, count, Empty, Failure, lasted, Loaded, Loading, Panel, share, Table, Time, useHere, useLoad } from "./ui.js";

const LOOK_MS = 2000;
// Nodes write their counts down every ten seconds unless they are told otherwise, so a rate is taken over some of those.
const RATE_MS = 30_000;
const SPANS = {
  hour: { title: "1 hour", step: "minute", seconds: 60, steps: 60 },
  day: { title: "1 day", step: "hour", seconds: 3600, steps: 24 },
  month: { title: "30 days", step: "day", seconds: 86_400, steps: 30 },
};

const isRefusal = (outcome) => outcome !== "granted" && outcome !== "replayed";
const refused = (outcomes) => Object.entries(outcomes).reduce((sum, [outcome, n]) => sum + (isRefusal(outcome) ? n : 0), 0);

// The steps up to now, also those in which nothing happened.
function spread({ seconds, steps }, stats) {
  const last = Math.floor(Date.parse(stats.to) / 1000 / seconds - 1) * seconds;
  const times = Array.from({ length: steps }, (_, index) => last - (steps - 1 - index) * seconds);
  const known = new Map(stats.steps.map(({ at, outcomes }) => [Math.floor(Date.parse(at) / 1000), outcomes]));
  const pick = (take) => times.map((time) => take(known.get(time) ?? {}));
  return {
    times,
    series: [
      { label: "granted", tone: "good", values: pick((outcomes) => outcomes.granted ?? 0) },
      { label: "replayed", tone: "info", values: pick((outcomes) => outcomes.replayed ?? 0) },
      { label: "refused", tone: "warn", values: pick(refused) },
    ],
  };
}

// Redemptions a second: how much the counts have grown since some counts ago.
function useRate(stats) {
  const seen = useRef([]);
  const [rate, setRate] = useState(null);
  useEffect(() => {
    if (!stats) return;
    const now = Date.now();
    const granted = stats.totals.granted ?? 0;
    const kept = seen.current.filter(({ at, granted: then }) => now - at < RATE_MS && then <= granted);
    seen.current = [...kept, { at: now, granted }];
    const [{ at, granted: then }] = seen.current;
    if (now - at >= RATE_MS / 3) return void setRate((granted - then) / ((now - at) / 1000));
    // Nothing to compare with yet: the last whole minute.
    const minute = stats.steps.find(({ at }) => Math.abs(Date.parse(stats.to) - Date.parse(at) - 120_000) < 1000);
    setRate((minute?.outcomes.granted ?? 0) / 60);
  }, [stats]);
  return rate;
}

// The value below which a share of a histogram of Prometheus lies, in seconds.
export function quantile(text, metric, labels, part) {
  const buckets = [];
  for (const line of text.split("\n")) {
    if (!line.startsWith(`${metric}_bucket{`) || !labels.every((label) => line.includes(label))) continue;
    const bound = /le="([^"]+)"/.exec(line)[1];
    buckets.push([bound === "+Inf" ? Infinity : Number(bound), Number(line.slice(line.lastIndexOf(" ") + 1))]);
  }
  buckets.sort(([a], [b]) => a - b);
  const all = buckets.at(-1)?.[1];
  if (!all) return null;
  const index = buckets.findIndex(([, n]) => n >= all * part);
  const [bound, n] = buckets[index];
  const [before, fewer] = index ? buckets[index - 1] : [0, 0];
  return bound === Infinity ? before : before + ((bound - before) * (all * part - fewer)) / (n - fewer || 1);
}

const Tile = ({ name, value, note, tone }) => html`<div class="tile">
  <dt>${name}</dt><dd class=${tone}>${value}${note && html`<span class="fine">${note}</span>`}</dd>
</div>`;

function Tiles({ stats, rate, partition }) {
  const { totals, invites, sync } = stats;
  const behind = partition ? partition.outbox_entries : sync.behind;
  const lag = partition?.outbox_age_ms ? partition.outbox_age_ms / 1000 : 0;
  return html`<dl class="tiles">
    <${Tile} name="Redemptions a second" value=${rate === null ? "–" : rate < 10 ? rate.toFixed(1) : brief(Math.round(rate))} />
    <${Tile} name="Granted" value=${brief(totals.granted ?? 0)} note="in the last hour" />
    <${Tile} name="Refused" value=${brief(refused(totals))} note="in the last hour" />
    <${Tile} name="Active invites" value=${brief(invites.active)} note=${invites.unlimited ? `${brief(invites.unlimited)} without limit` : `${brief(invites.remaining)} uses left`} />
    <${Tile} name="Ledger behind" value=${count(behind)} note=${behind === null ? "Redis can not be asked" : behind ? `changes, for ${lasted(lag)}` : "changes"}
      tone=${behind === null ? "bad" : lag > 5 ? "warn" : ""} />
  </dl>`;
}

// What the service is to be helped with, or that nothing is wrong.
function Verdict({ ready, status, own, problem }) {
  const closed = own ?? status.data?.partitions.find(({ state }) => state !== "open");
  const checks = ready.data?.checks ?? [];
  const wrong = checks.filter(({ ok }) => !ok);
  if (closed && (own ? own.state !== "open" : problem?.isFenced)) {
    return html`<div class="note bad" role="alert"><div>
      <strong>Fenced: nobody is served in this namespace</strong>
      <p>${own ? `Its partition ${own.partition}` : "Its partition"} is ${closed.state}${closed.reason ? `: ${closed.reason}` : ""}.</p>
      <p class="fine">Recovery opens it by itself when nothing can get lost by that; otherwise the reason names the ways out.</p>
    </div></div>`;
  }
  if (wrong.length) {
    return html`<div class=${`note ${ready.data.ready ? "warn" : "bad"}`} role="alert"><div>
      <strong>${ready.data.ready ? "Something needs a look" : "This node should be sent no requests"}</strong>
      ${wrong.map(({ name, detail }) => html`<p>${name}${detail ? `: ${detail}` : ""}</p>`)}
    </div></div>`;
  }
  return null;
}

function Health({ ready, status, metrics }) {
  const names = { redis: "Gate (Redis)", partitions: "Partitions", ledger: "Ledger (SQL)", stopping: "This node" };
  const text = metrics.data;
  const route = ['route="/v1/namespaces/{ns}/redemptions"'];
  const answer = (part) => lasted(quantile(text, "redeemer_http_request_seconds", route, part));
  const lag = (part) => lasted(quantile(text, "redeemer_sync_lag_seconds", [], part));
  return html`<${Panel} title="Health">
    <${Loaded} of=${ready} rows=${3}>${({ checks }) => html`<ul class="facts">
      ${checks.map(({ name, ok }) => html`<li><span>${names[name] ?? name}</span><span><${Badge} word=${ok ? "ok" : "not ok"} /></span></li>`)}
    </ul>`}<//>
    ${text && html`<ul class="facts">
      <li><span>Redemptions answered in</span><span class="num">${answer(0.5)} <span class="fine">p50</span> · ${answer(0.99)} <span class="fine">p99</span></span></li>
      <li><span>In the ledger after</span><span class="num">${lag(0.5)} <span class="fine">p50</span> · ${lag(0.99)} <span class="fine">p99</span></span></li>
    </ul>`}
    ${status.data && html`<p class="fine">Node <code>${status.data.node}</code>, version ${status.data.version}. Times are this node's since its start.</p>`}
  <//>`;
}

function Refusals({ stats }) {
  const rows = Object.entries(stats.totals).filter(([outcome]) => isRefusal(outcome)).sort(([, a], [, b]) => b - a);
  const all = Object.values(stats.totals).reduce((sum, n) => sum + n, 0);
  const columns = [
    { head: "Why", cell: ([code]) => html`<code>${code}</code>` },
    { head: "Times", kind: "num", cell: ([, n]) => count(n) },
    { head: "Of all", kind: "num", cell: ([, n]) => share(n, all) },
  ];
  return html`<${Panel} title="Refused, and why">
    ${rows.length ? html`<${Table} small label="Refusals" columns=${columns} rows=${rows} id=${([code]) => code} />`
      : html`<${Empty} title="Nobody was refused">In the time that the chart shows.<//>`}
  <//>`;
}

function Partitions({ status }) {
  const [all, setAll] = useState(false);
  const columns = [
    { head: "Partition", kind: "num", cell: ({ partition }) => partition },
    { head: "State", cell: ({ state, reason }) => html`<${Badge} word=${state} />${reason && html` <span class="fine">${reason}</span>`}` },
    { head: "Epoch", kind: "num", cell: ({ epoch }) => epoch },
    { head: "Leader", cell: ({ leader }) => (leader ? html`<code>${leader}</code>` : html`<span class="fine">none</span>`) },
    { head: "Outbox", kind: "num", cell: ({ outbox_entries }) => count(outbox_entries) },
    { head: "Oldest", kind: "num", cell: ({ outbox_age_ms }) => (outbox_age_ms === null ? "–" : lasted(outbox_age_ms / 1000)) },
    { head: "Synced", cell: ({ synced_at }) => html`<${Time} at=${synced_at} none="never" />` },
  ];
  return html`<${Loaded} of=${status} rows=${4}>${({ partitions }) => {
    const leaders = new Map();
    for (const { leader } of partitions) leaders.set(leader, (leaders.get(leader) ?? 0) + 1);
    const open = partitions.filter(({ state }) => state === "open").length;
    const rows = all ? partitions : partitions.filter(({ state, leader, outbox_age_ms }) => state !== "open" || !leader || outbox_age_ms > 5000);
    return html`<${Panel} title="Partitions and leaders" wide
      actions=${html`<button type="button" class="small" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? "Only those to look at" : "Show all"}</button>`}>
      <p>${open} of ${partitions.length} open · ${[...leaders].map(([leader, n]) => html`<span>${leader ? html`<code>${leader}</code> leads ${n}` : `${n} without a leader`} </span>`)}</p>
      <ul class="cells" aria-label="Partitions">${partitions.map(({ partition, state }) => html`<li class=${state} title=${`partition ${partition}: ${state}`}>${partition}</li>`)}</ul>
      ${rows.length > 0 && html`<${Table} label="Partitions" columns=${columns} rows=${rows} id=${({ partition }) => partition} />`}
    <//>`;
  }}<//>`;
}

export function Overview({ query }) {
  const { ns, filter } = useHere();
  const span = SPANS[query.span] ?? SPANS.hour;
  const hour = useLoad((signal) => get(inNamespace(ns, "stats"), signal), [ns], LOOK_MS);
  const charted = useLoad((signal) => get(withQuery(inNamespace(ns, "stats"), { step: span.step,
    from: new Date(Math.floor(Date.now() / 1000 / span.seconds + 1 - span.steps) * span.seconds * 1000).toISOString() }), signal), [ns, span], 5000);
  const ready = useLoad(readiness, [], LOOK_MS);
  const status = useLoad((signal) => get("/v1/status", signal), [], LOOK_MS);
  const metrics = useLoad((signal) => getText("/metrics", signal), [], 5000);
  const rate = useRate(hour.data);
  const own = hour.data && status.data?.partitions[Number(hour.data.sync.position.split("/")[0])];
  return html`
    <div class="head"><h1>Overview</h1></div>
    <${Verdict} ready=${ready} status=${status} own=${own} problem=${hour.problem} />
    ${!hour.problem?.isFenced && html`<${Failure} problem=${hour.problem} retry=${hour.reload} />`}
    ${hour.data ? html`<${Tiles} stats=${hour.data} rate=${rate} partition=${own} />` : !hour.problem && html`<${Loading} rows=${2} />`}
    <div class="columns">
      <${Panel} title="Outcomes" wide actions=${html`<div class="switch" role="group" aria-label="Time">
        ${Object.entries(SPANS).map(([name, { title }]) => html`<button type="button" aria-pressed=${span === SPANS[name]} onClick=${() => filter({ span: name })}>${title}</button>`)}
      </div>`}>
        ${charted.problem?.isFenced && !charted.data ? html`<${Empty} title="No counts">While the gate serves nobody, they can not be asked for.<//>` : html`<${Loaded} of=${charted}>${(stats) => html`<${Bars} ...${spread(span, stats)} step=${span.seconds}
          label=${`Outcomes of the last ${span.title}: ${count(stats.totals.granted ?? 0)} granted, ${count(stats.totals.replayed ?? 0)} replayed, ${count(refused(stats.totals))} refused`} />`}<//>`}
      <//>
      ${charted.data && html`<${Refusals} stats=${charted.data} />`}
      <${Health} ready=${ready} status=${status} metrics=${metrics} />
      <${Partitions} status=${status} />
    </div>`;
}

// Outcomes over time, as bars that stand on each other.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { brief, count } from "./ui.js";
import Plot from "./vendor/uplot.mjs";

// A colour of the stylesheet as it is now, for the canvas.
function colour(element, name) {
  element.style.color = `var(--${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
}

const hours = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const days = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const tickOf = (step) => (tick) => (step < 86_400 ? hours : days).format(new Date(tick * 1000));
const bars = Plot.paths.bars({ size: [0.8, 40], align: 1 });

// series: [{label, tone, values}] from the ground up; times: when each step began, in seconds.
export function Bars({ times, step, series, label }) {
  const place = useRef();
  const plot = useRef();
  const [at, setAt] = useState(null);
  const [theme, setTheme] = useState(0);
  useEffect(() => {
    const changed = () => setTheme((theme) => theme + 1);
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", changed);
    addEventListener("themechange", changed);
    return () => (system.removeEventListener("change", changed), removeEventListener("themechange", changed));
  }, []);
  // Bars are drawn from the ground, the highest first, so that the lower ones cover it.
  const heights = series.map((_, index) => times.map((_, i) => series.slice(0, index + 1).reduce((sum, { values }) => sum + values[i], 0)));
  const data = [times, ...heights.toReversed()];
  useLayoutEffect(() => {
    const [text, line] = [colour(place.current, "muted"), colour(place.current, "line")];
    const axis = { stroke: text, font: "12px system-ui, sans-serif", ticks: { show: false } };
    const options = {
      width: place.current.clientWidth,
      height: 220,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: {
        x: { range: () => [times[0], times.at(-1) + step] },
        y: { range: (_, __, max) => [0, Math.max(4, max * 1.05)] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 64, size: 28, values: (_, ticks) => ticks.map(tickOf(step)) },
        { ...axis, grid: { stroke: line, width: 1 }, size: 48, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? brief(tick) : "")) },
      ],
      series: [{}, ...series.toReversed().map(({ tone }) => {
        const fill = colour(place.current, `fill-${tone}`);
        return { fill, stroke: fill, width: 0, points: { show: false }, paths: bars };
      })],
      hooks: { setCursor: [({ cursor }) => setAt(cursor.idx ?? null)] },
    };
    plot.current = new Plot(options, data, place.current);
    const fit = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height: 220 }));
    fit.observe(place.current);
    return () => (fit.disconnect(), plot.current.destroy());
  }, [step, theme, series.length]);
  useEffect(() => plot.current.setData(data), [data.flat().join()]);
  const sum = (values) => values.reduce((sum, value) => sum + value, 0);
  const when = at === null || at >= times.length ? null : new Date(times[at] * 1000);
  return html`<div class="chart">
    <div ref=${place} role="img" aria-label=${label}></div>
    <ul class="legend">
      ${series.map(({ label, tone, values }) => html`<li><i class=${`fill-${tone}`}></i>${label} <b>${count(when ? values[at] : sum(values))}</b></li>`)}
      <li class="fine">${when ? when.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : "in all"}</li>
    </ul>
  </div>`;
}

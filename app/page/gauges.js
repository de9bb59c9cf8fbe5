/* The gauges of the live view: their values from the history, and their charts. */

import { bar } from "./charts.js";
import { html } from "./drawing.js";
import { bytes, number, seconds, whole } from "./format.js";
import { plot } from "./plot.js";

export const HISTORY_S = 180;

// Window of quantiles; with fewer requests they would fluctuate.
export const WINDOW_S = 10;

const or = (value, format) => (value == null ? "–" : format(value));

// Ticks by the number of shown minutes.
const TICKS = {
  1: [[-40, "40 s ago"], [-20, "20 s"], [0, "now"]],
  2: [[-60, "1 min ago"], [-30, "30 s"], [0, "now"]],
  3: [[-120, "2 min ago"], [-60, "1 min"], [0, "now"]],
};

const GAUGES = [
  {
    key: "requests",
    title: "Requests",
    big: (now) => [or(now.requests, number), "a second"],
    note: (now) => `${or(now.images, number)} images, ${or(now.refused, number)} refusals a second`,
    lines: [["requests", "served"]],
    format: number,
  },
  {
    key: "latency",
    title: "Time of a request",
    big: (now) => [or(now.median, seconds), "p50"],
    second: (now) => [or(now.slow, seconds), "p99"],
    note: () => `from first byte to last, over ${WINDOW_S} s; read off histogram buckets`,
    lines: [
      ["median", "served"],
      ["slow", "second"],
    ],
    format: seconds,
  },
  {
    key: "batch",
    title: "Batch size",
    big: (now) => [or(now.batch, number), "images, mean"],
    note: () => `batches by size, over ${WINDOW_S} s`,
    draw: (now) => columns(now.batches),
  },
  {
    key: "queue",
    title: "Queue",
    big: (now) => [whole(now.waiting), "waiting"],
    second: (now) => [whole(now.inside), "in flight"],
    note: (now) => `the first has waited ${seconds(now.oldest)}`,
    lines: [
      ["waiting", "second"],
      ["inside", "served"],
    ],
    format: number,
  },
  {
    key: "memory",
    title: "Memory",
    big: (now) => [or(now.resident, bytes), "process"],
    second: (now) => (now.device == null ? null : [bytes(now.device), "device"]),
    note: (now) => `${bytes(now.free)} free`,
    lines: [
      ["resident", "served"],
      ["device", "second"],
    ],
    format: bytes,
  },
  {
    key: "stages",
    title: "Where the time goes",
    note: () => `means over ${WINDOW_S} s: read and respond by request, the others by image`,
    draw: (now) => stageBars(now.stages),
  },
];

/** The gauges' empty elements. */
export function frames() {
  return GAUGES.map(frame);
}

function frame(gauge) {
  gauge.figures = html("p", { class: "figures" });
  gauge.small = html("p", { class: "note" });
  gauge.host = html("div", { class: "host" });
  if (gauge.lines) gauge.plot = plot(gauge.host);
  return html("section", { class: "panel gauge", "data-gauge": gauge.key }, html("h2", {}, gauge.title), gauge.figures, gauge.host, gauge.small);
}

/** Show the last values of `history`, and their course. */
export function show(history) {
  for (const gauge of GAUGES) showOne(gauge, history);
}

function showOne(gauge, history) {
  const now = history.at(-1);
  const told = [gauge.big, gauge.second].map((part) => part?.(now)).filter(Boolean);
  gauge.figures.replaceChildren(...told.map(([value, unit], index) => figure(value, unit, gauge.lines?.[index]?.[1])));
  gauge.small.textContent = gauge.note(now);
  if (gauge.draw) {
    gauge.host.replaceChildren(gauge.draw(now));
    return;
  }
  const minutes = Math.min(Math.ceil((now.at - history[0].at + 1) / 60), HISTORY_S / 60);
  gauge.plot({
    label: `${gauge.title}: ${told.map((words) => words.join(" ")).join(", ")}; and the last minutes`,
    series: gauge.lines.map(([key, name]) => ({ name, points: history.map((then) => [then.at - now.at, then[key]]) })),
    from: -minutes * 60,
    to: 0,
    ticks: TICKS[minutes],
    format: gauge.format,
  });
}

function figure(value, unit, name) {
  return html("span", { class: `reading ${name ?? ""}` }, html("strong", { class: "figure" }, value), ` ${unit}`);
}

function columns(buckets) {
  const shown = buckets.slice(0, Math.max(6, buckets.findLastIndex(({ count }) => count > 0) + 1));
  const all = buckets.reduce((total, { count }) => total + count, 0);
  const rows = shown.map(({ upTo, count }, index) => {
    const from = index === 0 ? 1 : shown[index - 1].upTo + 1;
    return row(sizes(from, upTo), all ? count / all : 0, whole(count), "");
  });
  return html("table", { class: "rows", "aria-label": "Batches by size" }, html("tbody", {}, rows));
}

function sizes(from, upTo) {
  if (upTo === Infinity) return `over ${from - 1}`;
  return from >= upTo ? String(upTo) : `${from} to ${upTo}`;
}

function stageBars(stages) {
  const most = Math.max(...stages.map(({ mean }) => mean ?? 0)) || 1;
  const rows = stages.map(({ stage, mean }) => row(stage, (mean ?? 0) / most, or(mean, seconds), `stage-${stage}`));
  return html("table", { class: "rows", "aria-label": "Mean time by stage" }, html("tbody", {}, rows));
}

function row(name, fraction, value, colour) {
  return html(
    "tr",
    {},
    html("th", { scope: "row" }, name),
    html("td", { class: "drawn" }, bar(fraction, colour)),
    html("td", { class: "figure" }, value),
  );
}

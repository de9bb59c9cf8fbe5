/* The sweep: time and memory over batch sizes, one line an arm, and the largest batch that fits. */

import { nameOf } from "./arms.js";
import { bar } from "./charts.js";
import { html, svg } from "./drawing.js";
import { bytes, seconds, whole } from "./format.js";
import { plot } from "./plot.js";

const MEASURES = [
  { title: "Time of a forward", of: ({ median_seconds: median }) => median, format: seconds },
  { title: "Retained for a backward pass", of: ({ retained_bytes: kept }) => kept, format: bytes },
  { title: "Peak memory", of: ({ peak_bytes: peak }) => peak, format: bytes },
];

/** The sweep's section; nothing without a sweep. */
export function sweepOf({ sweep, largest_batch: largest }) {
  if (!sweep?.length) return null;
  const arms = sweep[0].arms.map(({ arm }) => arm);
  const content = [
    html("ul", { class: "legend" }, arms.map((arm) => html("li", {}, sampleLine(arm), nameOf(arm)))),
    html("div", { class: "plots" }, MEASURES.map((measure) => figureOf(measure, sweep, arms))),
    fitting(largest),
    html("details", {}, html("summary", {}, "As a table"), tableOf(sweep, arms)),
  ];
  return html("section", { class: "panel" }, html("h2", {}, "Over batch sizes"), content);
}

function sampleLine(arm) {
  const line = svg("line", { class: `line arm-${arm}`, x1: 0, x2: 28, y1: 6, y2: 6 });
  return svg("svg", { width: 28, height: 12, "aria-hidden": "true" }, line);
}

function figureOf({ title, of, format }, sweep, arms) {
  const host = html("div", { class: "host" });
  const show = plot(host);
  const sizes = sweep.map(({ batch_size: size }) => size);
  const value = (point, arm) => of(point.arms.find((each) => each.arm === arm) ?? {}) ?? null;
  show({
    label: `${title} by batch size, from ${sizes[0]} to ${sizes.at(-1)} images, an arm a line`,
    series: arms.map((arm) => ({ name: `arm-${arm}`, points: sweep.map((point) => [point.batch_size, value(point, arm)]) })),
    from: 0,
    to: sizes.at(-1),
    ticks: sizes.map((size) => [size, String(size)]),
    format,
    marks: true,
  });
  return html("figure", {}, html("figcaption", {}, title), host);
}

function fitting(largest) {
  if (!largest) return null;
  const { memory_bytes: memory, with_gradients: kept, without_gradients: free } = largest;
  const rows = [
    ["with gradients", kept, "arm-grad"],
    ["without", free, "arm-served"],
  ].map(([name, images, colour]) =>
    html(
      "tr",
      {},
      html("th", { scope: "row" }, name),
      html("td", { class: "drawn" }, bar(images / Math.max(kept, free, 1), colour)),
      html("td", { class: "figure" }, `about ${whole(images)} images`),
    ),
  );
  return html(
    "div",
    { class: "fitting" },
    html("h3", {}, `The largest batch that ${bytes(memory)} of free memory would hold`),
    html("table", { class: "rows" }, html("tbody", {}, rows)),
  );
}

function tableOf(sweep, arms) {
  const heads = ["Batch", ...arms.map(nameOf)].map((head) => html("th", { scope: "col" }, head));
  const rows = sweep.map(({ batch_size: size, arms: found }) =>
    html("tr", {}, html("th", { scope: "row" }, String(size)), found.map((arm) => html("td", { class: "figure" }, MEASURES.map((measure) => cellLine(measure, arm))))),
  );
  const caption = html("caption", {}, "In each field: the time, what is retained, the peak.");
  const table = html("table", { class: "facts-table" }, caption, html("thead", {}, html("tr", {}, heads)), html("tbody", {}, rows));
  return html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "The sweep as a table" }, table);
}

function cellLine({ of, format }, arm) {
  const value = of(arm);
  return html("div", {}, value == null ? "–" : format(value));
}

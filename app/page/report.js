/* A comparison's report: sentences, costs of each arm, effects of autograd, and memory kept by module. */

import { nameOf } from "./arms.js";
import { bar, barWithSpread } from "./charts.js";
import { html } from "./drawing.js";
import { bytes, counted, glued, number, percent, seconds, whole } from "./format.js";
import { sweepOf } from "./sweep.js";

const MODULES_AT_FIRST = 10;

/** The report's sections; `command` is shown with the description of the measurement. */
export function reportOf(report, command) {
  return [saying(report), costs(report), sweepOf(report), autograd(report), modules(report), measured(report, command)].filter(Boolean);
}

function panel(title, ...content) {
  return html("section", { class: "panel" }, html("h2", {}, title), content);
}

function saying({ sentences }) {
  const [first, ...others] = sentences.map(glued);
  return html(
    "section",
    { class: "saying", "aria-label": "In words" },
    html("p", { class: "first" }, first),
    html("ul", {}, others.map((sentence) => html("li", {}, sentence))),
  );
}

const MEASURES = [
  { key: "time", title: "Time", note: "median, and the quartiles", of: ({ seconds: { median } }) => median, format: seconds, why: () => null },
  { key: "peak", title: "Peak memory", note: "above the start", of: ({ peak_bytes: peak }) => peak, format: bytes, why: ({ peak_note: note }) => note },
  { key: "retained", title: "Retained", note: "kept for a backward pass", of: ({ retained_bytes: kept }) => kept, format: bytes, why: ({ retained_note: note }) => note },
];

function costs({ arms, batch_size: size, left_out: absent = [] }) {
  const heads = MEASURES.map(({ title, note }) => html("th", { scope: "col" }, title, html("small", {}, note)));
  const most = Object.fromEntries(MEASURES.map(({ key, of }) => [key, Math.max(...arms.map((arm) => of(arm) ?? 0))]));
  most.time = Math.max(...arms.map(({ seconds: { upper_quartile: upper } }) => upper));
  const rows = arms.map((arm) =>
    html(
      "tr",
      { "data-arm": arm.arm },
      html("th", { scope: "row" }, nameOf(arm.arm)),
      MEASURES.map((measure) => cost(measure, arm, most[measure.key])),
    ),
  );
  const head = html("thead", {}, html("tr", {}, html("td"), heads));
  const missing = absent.map(({ arm, reason }) => html("p", { class: "note" }, `Without ${nameOf(arm)}: ${reason}`));
  const table = html("table", { class: "costs" }, head, html("tbody", {}, rows));
  return panel(`One forward of ${counted(size, "image")}`, table, missing);
}

function cost({ key, title, of, format, why }, arm, most) {
  const value = of(arm);
  const told = value == null ? html("small", {}, why(arm) ?? "not known") : format(value);
  const name = `arm-${arm.arm}`;
  const { lower_quartile: low, upper_quartile: high } = arm.seconds;
  const drawn = key === "time" ? barWithSpread({ low, middle: value, high }, most, name) : bar((value ?? 0) / (most || 1), name);
  return html("td", { "data-measure": key, "data-title": title }, html("span", { class: "figure" }, told), value != null && drawn);
}

const yes = (is) => (is ? "yes" : "no");

const FACTS = [
  ["requires_grad", ({ output }) => yes(output.requires_grad)],
  ["grad_fn", ({ output }) => output.grad_fn ?? "None"],
  ["is_inference()", ({ output }) => yes(output.is_inference)],
  ["version counter", ({ output }) => (output.version_counter_readable ? "readable" : "none")],
  ["tensors", ({ retained_tensors: kept }) => (kept === null ? "not observed" : whole(kept))],
  ["difference", ({ max_abs_difference: most }) => difference(most)],
  ["same class", ({ top1_agreement: share }) => (share === null ? "no classes" : percent(share))],
  ["backward()", ({ backward }) => (backward.works ? "works" : "fails")],
];

function difference(most) {
  if (most === null) return "no number";
  return most === 0 || most >= 0.01 ? number(most) : most.toExponential(1);
}

function autograd({ arms }) {
  const heads = FACTS.map(([name]) => html("th", { scope: "col" }, name));
  const rows = arms.map((arm) =>
    html("tr", { "data-arm": arm.arm }, html("th", { scope: "row" }, nameOf(arm.arm)), FACTS.map(([, of]) => html("td", {}, of(arm)))),
  );
  const table = html("table", { class: "facts-table" }, html("thead", {}, html("tr", {}, html("td"), heads)), html("tbody", {}, rows));
  const note =
    "Of the output; tensors are those kept. The largest difference of any logit (without classes, of any feature) and the share of images with the same likeliest class are held against inference_mode’s.";
  return panel("What autograd made of it", room("What autograd made of it", table), html("p", { class: "note" }, note), refusals(arms), training(arms));
}

// PyTorch's message, once for all arms that have it.
function refusals(arms) {
  const words = new Map();
  for (const { arm, backward } of arms) {
    if (!backward.works) words.set(backward.error, [...(words.get(backward.error) ?? []), nameOf(arm)]);
  }
  return [...words].map(([error, names]) =>
    html("p", { class: "note" }, `backward() after ${listed(names)}: `, html("q", {}, error ?? "no reason given")),
  );
}

function listed(names) {
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0];
}

function training(arms) {
  const train = arms.find(({ arm }) => arm === "train")?.train;
  if (!train) return null;
  const moved = `In train mode ${whole(train.batchnorm_buffers_moved)} of ${whole(train.batchnorm_buffers)} BatchNorm buffers moved`;
  const differed = train.dropouts && train.eval_runs_agree ? "differed, as Dropout makes them" : "differed";
  const agree = `two runs on one input ${train.runs_agree ? "agreed" : differed}`;
  return html("p", { class: "note" }, `${moved}, and ${agree}.`);
}

function modules({ modules: all }) {
  if (!all?.length) return null;
  const most = all[0].retained_bytes || 1;
  const rows = all.map(({ module, type, retained_bytes: kept, retained_tensors: tensors }, index) =>
    html(
      "tr",
      { hidden: index >= MODULES_AT_FIRST },
      html("th", { scope: "row" }, html("code", {}, module || "(the whole)")),
      html("td", {}, type),
      html("td", { class: "drawn" }, bar(kept / most, "arm-grad")),
      html("td", { class: "figure" }, bytes(kept)),
      html("td", { class: "figure" }, whole(tensors)),
    ),
  );
  const heads = ["Module", "Type", "", "Retained", "Tensors"].map((head) => (head ? html("th", { scope: "col" }, head) : html("td")));
  const table = html("table", { class: "modules" }, html("thead", {}, html("tr", {}, heads)), html("tbody", {}, rows));
  const more = html("button", { type: "button", class: "quiet", onclick: showAll }, `Show all ${whole(all.length)}`);
  function showAll() {
    for (const row of rows) row.hidden = false;
    more.remove();
  }
  return panel("Which modules kept it", room("Retained by module", table), all.length > MODULES_AT_FIRST && more);
}

function room(label, table) {
  return html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, table);
}

function measured(report, command) {
  const { model, architecture, device, dtype, backend, torch, input, batch_size: size, iterations, fingerprint } = report;
  const facts = [
    ["Model", architecture === model ? model : `${model} (${architecture})`],
    ["Served by", `${backend}, ${dtype} on ${device}`],
    ["PyTorch", torch],
    ["Input", `${counted(size, "image")}: ${input}`],
    ["Rounds", whole(iterations)],
    ["Fingerprint", fingerprint],
  ];
  return panel(
    "How it was measured",
    html("dl", { class: "measured" }, facts.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value)))),
    html("p", {}, html("button", { type: "button", class: "quiet", onclick: () => download(report) }, "Download the report as JSON")),
    command,
  );
}

function download(report) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(report, null, 2)], { type: "application/json" }));
  html("a", { href: url, download: `${report.model.replaceAll(/[^\w.-]+/g, "-")}-gradients.json` }).click();
  // Revoke only after the browser has read it.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/* Lens: start a comparison and follow its progress. report.js draws the report. */

import { ask, broken, Problem } from "./api.js";
import { ARMS } from "./arms.js";
import { commandBox, curlOf } from "./curl.js";
import { byId, html } from "./drawing.js";
import { events } from "./events.js";
import { seconds } from "./format.js";
import { notice, tell } from "./notices.js";
import { pictures } from "./pictures.js";
import { reportOf } from "./report.js";

// Timeouts: of a whole comparison without progress events, and between two progress events.
const TIMEOUT_MS = 600_000;
const SILENCE_MS = 60_000;
const SWEEPS = [4, 16, 64];

let model = () => null;
let running = null;
let form = null;

/** Build the view in its panel; `chosenModel()` names the model to compare. */
export function build(chosenModel) {
  model = chosenModel;
  form = controls();
  byId("view-lens").replaceChildren(
    form,
    html("div", { id: "lens-notice" }),
    html("p", { id: "lens-status", class: "unseen-status", role: "status" }),
    html("div", { id: "report" }),
  );
}

/** Offer the current pictures. */
export function enter() {
  const select = form.elements.input;
  const chosen = select.value;
  const offered = pictures.map(({ name }, index) => html("option", { value: index }, name));
  select.replaceChildren(html("option", { value: "" }, "random pixels"), ...offered);
  select.value = [...select.options].some(({ value }) => value === chosen) ? chosen : "";
}

/** A comparison goes on while another view is open. */
export function leave() {}

function controls() {
  const arms = Object.entries(ARMS).map(([arm, { name, what }]) =>
    html(
      "label",
      { class: "arm" },
      html("input", { type: "checkbox", name: "arms", value: arm, checked: true }),
      html("span", {}, html("code", {}, name), html("small", {}, what)),
    ),
  );
  return html(
    "form",
    { id: "lens-form", class: "panel lens-form", onsubmit: submit },
    html("h2", {}, "What would gradients cost here?"),
    html("p", { class: "lead" }, "Runs this model’s forward on one batch in several ways, and measures each. Serving goes on."),
    html("fieldset", {}, html("legend", {}, "Ways to run it"), html("div", { class: "arms" }, arms)),
    html(
      "div",
      { class: "knobs" },
      knob("Batch size", html("input", { type: "number", name: "batch_size", min: 1, max: 64, value: 8, required: true })),
      knob("Rounds", html("input", { type: "number", name: "iterations", min: 1, max: 50, value: 12, required: true })),
      knob("Sweep", html("select", { name: "sweep" }, html("option", { value: "" }, "none"), SWEEPS.map(sweepOption))),
      knob("Input", html("select", { name: "input" })),
    ),
    html(
      "div",
      { class: "go" },
      html("button", { type: "submit", class: "primary", id: "run" }, "Compare"),
      html("button", { type: "button", class: "quiet", id: "stop", hidden: true, onclick: () => running?.abort() }, "Stop"),
      html("label", { class: "progress", id: "progress", hidden: true }, html("span"), html("progress")),
    ),
  );
}

function knob(label, field) {
  return html("label", { class: "knob" }, html("span", {}, label), field);
}

function sweepOption(most) {
  const sizes = [1, 2, 4, 8, 16, 32, 64].filter((size) => size <= most);
  return html("option", { value: sizes.join(",") }, `batches of 1 to ${most}`);
}

async function submit(event) {
  event.preventDefault();
  // The button is disabled during a comparison, but Enter in a field is not.
  if (running) return;
  running = new AbortController();
  const startedAt = performance.now();
  byId("lens-notice").replaceChildren();
  busy(true);
  progress({ stage: "asking" });
  try {
    const [path, picture] = asked();
    const report = await compared(path, picture?.file, running.signal);
    const command = commandBox("The same from a shell", curlOf(path, picture ? [picture] : []));
    byId("report").replaceChildren(...reportOf(report, command));
    byId("lens-status").textContent = `Compared in ${seconds((performance.now() - startedAt) / 1e3)}.`;
  } catch (error) {
    refused(error);
  } finally {
    running = null;
    busy(false);
  }
}

function asked() {
  const { arms, batch_size: size, iterations, sweep, input } = form.elements;
  const chosen = [...arms].filter(({ checked }) => checked).map(({ value }) => value);
  const query = new URLSearchParams({ model: model(), batch_size: size.value, iterations: iterations.value });
  if (chosen.length < arms.length) query.set("arms", chosen.join(","));
  if (sweep.value) query.set("sweep", sweep.value);
  // Commas need no escape in a query.
  const path = `debug/grad-modes?${query.toString().replaceAll("%2C", ",")}`;
  return [path, input.value === "" ? null : pictures[Number(input.value)]];
}

function refused(error) {
  const status = byId("lens-status");
  status.textContent = error.name === "AbortError" ? "Stopped." : "";
  if (error.type?.endsWith(":debug-disabled")) {
    const switched = "Whoever runs this server can switch it on: GRADLESS_DEBUG_ENDPOINTS=true.";
    byId("lens-notice").replaceChildren(notice("The lens is switched off here", switched));
    return;
  }
  tell(byId("lens-notice"), error);
}

async function compared(path, file, signal) {
  const headers = { Accept: "text/event-stream, application/json;q=0.5" };
  // A copy without a type, so that only the bytes decide the format.
  const options = { method: "POST", headers, body: file?.slice(), signal, timeoutMs: TIMEOUT_MS, lasting: true };
  const answer = await ask(path, options);
  if (!answer.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    return answer.json().catch(() => {
      throw broken(signal);
    });
  }
  for await (const { name, data } of events(answer, { signal, timeoutMs: SILENCE_MS })) {
    const told = JSON.parse(data);
    if (name === "progress") progress(told);
    if (name === "problem") throw new Problem(told);
    if (name === "report") return told;
  }
  throw new Problem({ title: "The comparison broke off", detail: "The server ended it without a report." });
}

function busy(is) {
  byId("run").disabled = is;
  byId("stop").hidden = byId("progress").hidden = !is;
}

function progress({ done, total, stage }) {
  const [text, meter] = byId("progress").children;
  text.textContent = total ? `${stage}, ${done} of ${total}` : stage;
  if (total) {
    meter.max = total;
    meter.value = done;
  } else {
    meter.removeAttribute("value");
  }
}

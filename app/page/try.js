/* Try: send pictures; show classes, request time, vectors and similarities. */

import { Problem, serverTiming } from "./api.js";
import { byId, html } from "./drawing.js";
import { classesOf, commands, features, MOST_COMPARED, similarity, waterfall } from "./findings.js";
import { bytes, counted, either, seconds } from "./format.js";
import { problemBox, tell } from "./notices.js";
import { pictures, remove, watchBench } from "./pictures.js";
import { partsOf, send } from "./sending.js";
import { decoded } from "./vectors.js";

const TASKS = ["predict", "search"];

// Of each picture: one row under a single picture, two rows under one of several.
const MOST_NEIGHBOURS = 6;

// Loaded when first used, so that the page starts sooner.
const LATER = { neighbours: () => import("./neighbours.js"), downloads: () => import("./downloads.js") };

// A request with one picture answers for the picture with these; all others concern the request.
const OF_THE_PICTURE = [413, 415, 422];

let model = null;
let limits = null;
let running = new AbortController();

// By picture: its card, the results of the tasks, its vector, and the refusal of its last request.
const records = new Map();
// Of the last answer: model, fingerprint, dimensions, shape.
let head = {};
let timed = null;

/** Start with the model `described`, on a server with these limits. */
export function start(described, limited) {
  model = described;
  limits = limited;
  byId("formats").textContent = either(limits.image_formats);
  byId("top-k").addEventListener("change", () => {
    forget(["predict"]);
    look();
  });
  const report = (error) => tell(byId("try-notice"), error);
  byId("save-csv").addEventListener("click", () => saveCsv().catch(report));
  byId("save-json").addEventListener("click", () => saveJson().catch(report));
  byId("raw").addEventListener("toggle", showRaw);
  watchBench(look, report);
}

/** Send the same and further pictures to another model. */
export function choose(described) {
  model = described;
  head = {};
  forget(TASKS);
  look();
}

// Drop results, of another model, version or number of classes. Those on the page stay until others come.
function forget(tasks, of = records.values()) {
  for (const record of of) {
    for (const task of tasks) delete record[task];
    if (tasks.includes("search")) record.card.querySelector(".alike")?.remove();
  }
}

function topK() {
  const field = byId("top-k");
  field.value = Math.min(Math.max(Math.round(field.valueAsNumber) || 5, 1), Number(field.max));
  return field.valueAsNumber;
}

// Without classes every picture gets a vector, otherwise those that are compared.
function getsVector(picture) {
  return model.classes === 0 || pictures.indexOf(picture) < MOST_COMPARED;
}

// All pictures of `part` get a vector, or none.
function queryOf(task, part) {
  const query = `v1/${task}?model=${encodeURIComponent(model.name)}`;
  if (task === "search") return `${query}&k=${MOST_NEIGHBOURS}`;
  const outputs = [model.classes > 0 && "classes", getsVector(part[0]) && "features"].filter(Boolean);
  return `${query}&outputs=${outputs}&top_k=${topK()}&encoding=base64`;
}

function isUnsent(picture, task) {
  const result = records.get(picture)[task];
  return !result || (task === "predict" && getsVector(picture) && !result.error && !result.features);
}

async function look(again) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  if (again) forget(TASKS, [records.get(again)]);
  const shown = [...pictures];
  arrange(shown);
  if (shown.length === 0) {
    busy(false);
    return;
  }
  busy(true);
  try {
    const sentAt = performance.now();
    const sent = await pass("predict", shown, signal);
    const took = (performance.now() - sentAt) / 1e3;
    summarize(shown, sent, took);
    showMore(shown);
    if (model.search) await findAlike(shown, signal);
    summarize(shown, sent, took);
    check(shown);
  } catch (error) {
    if (error.name === "AbortError") return;
    // Answers of another model or number of classes must not stay.
    for (const picture of shown) if (!records.get(picture).predict) fill(picture);
    summarize(shown, 0);
    showMore(shown);
    tell(byId("try-notice"), error, () => look());
  }
  showRaw();
  busy(false);
}

// The most similar indexed pictures, under each answer.
async function findAlike(shown, signal) {
  const { alike } = await LATER.neighbours();
  await pass("search", answered(shown), signal);
  for (const picture of answered(shown)) {
    const { card, search } = records.get(picture);
    if (search?.neighbours && !card.querySelector(".alike")) card.append(alike(search.neighbours));
  }
}

// Raises why pictures have no answer, if some have none.
function check(shown) {
  const missing = shown.map((picture) => records.get(picture)).filter((record) => !record.predict);
  if (missing.length === 0) return;
  const changed = { title: "The model changed", detail: "It was replaced while the pictures were sent." };
  throw missing.find(({ refused }) => refused)?.refused ?? new Problem(changed);
}

function busy(is) {
  for (const place of [byId("answers"), byId("try-more")]) {
    if (is) place.setAttribute("aria-busy", "true");
    else place.removeAttribute("aria-busy");
  }
}

// A card for each picture, and what there is to be done with several.
function arrange(shown) {
  for (const [picture, { card }] of records) {
    if (shown.includes(picture)) continue;
    card.remove();
    records.delete(picture);
  }
  for (const picture of shown) {
    if (!records.has(picture)) records.set(picture, { card: cardOf(picture) });
    if (!records.get(picture).card.isConnected) byId("answers").append(records.get(picture).card);
  }
  byId("answers").classList.toggle("single", shown.length === 1);
  byId("try-empty").hidden = shown.length > 0;
  for (const id of ["clear", "tools", "raw"]) byId(id).hidden = shown.length === 0;
  byId("top-k-field").hidden = byId("save-csv").hidden = model.classes === 0;
  if (shown.length === 0) byId("try-more").hidden = true;
  byId("try-notice").replaceChildren();
  byId("try-status").textContent = "";
}

// Send the pictures of `wanted` that have no complete result of the task, in parts. Returns their number. A refused
// part is noted with its pictures; what concerns all parts is raised.
async function pass(task, wanted, signal) {
  const unsent = wanted.filter((picture) => isUnsent(picture, task));
  const isMain = task === "predict";
  const parts = [true, false].flatMap((vectors) =>
    partsOf(
      unsent.filter((picture) => getsVector(picture) === vectors),
      limits,
    ),
  );
  let done = 0;
  const onWait = (wait) => say(`The service is at capacity; sending again in ${seconds(wait)}.`);
  for (const part of parts) {
    if (isMain && parts.length > 1) say(`${done} of ${counted(unsent.length, "picture")} sent.`);
    try {
      const sentAt = performance.now();
      const { answer, json } = await send(queryOf(task, part), part, { signal, onWait });
      // Aborted after its answer had come: the pictures may be gone.
      signal.throwIfAborted();
      const roundTrip = (performance.now() - sentAt) / 1e3;
      if (isMain) timed = waterfall(serverTiming(answer), roundTrip, part.length, parts.length);
      const { results: found, ...rest } = json;
      if (rest.fingerprint !== head.fingerprint) forget(TASKS);
      if (isMain) head = rest;
      part.forEach((picture, place) => accept(picture, task, found[place]));
    } catch (error) {
      if (part.length === 1 && OF_THE_PICTURE.includes(error.status)) accept(part[0], task, { error });
      else if (error.status === 413) {
        parts.splice(parts.indexOf(part) + 1, 0, ...halves(part));
        continue;
      } else if (isMain && (error.status === 429 || error.status >= 500)) refuse(part, error);
      else throw error;
    }
    done += part.length;
  }
  return unsent.length;
}

// A proxy may have a lower limit than the server.
function halves(part) {
  const middle = Math.ceil(part.length / 2);
  return [part.slice(0, middle), part.slice(middle)];
}

function say(text) {
  byId("try-status").textContent = text;
}

function accept(picture, task, result) {
  const record = records.get(picture);
  record[task] = result;
  delete record.refused;
  if (task !== "predict") return;
  record.vector = result.features && decoded(result.features);
  fill(picture, result);
}

function refuse(part, error) {
  for (const picture of part) {
    const record = records.get(picture);
    record.refused = error;
    fill(picture, record.predict);
  }
}

function answered(shown) {
  return shown.filter((picture) => {
    const { predict } = records.get(picture);
    return predict && !predict.error;
  });
}

// How many pictures were answered, failed, or have no answer; `sent` of them took so many seconds now.
function summarize(shown, sent, took) {
  const missing = shown.filter((picture) => !records.get(picture).predict).length;
  const good = answered(shown).length;
  const failed = shown.length - missing - good;
  const parts = [`${good} answered`, failed && `${failed} failed`, missing && `${missing} not answered`].filter(Boolean);
  const all = counted(shown.length, "picture");
  const counts = good === shown.length ? `${all} answered` : `${all}: ${parts.join(", ")}`;
  if (sent === 0) say(`${counts}.`);
  else if (sent < shown.length) say(`${counts}, the last ${sent} in ${seconds(took)}.`);
  else say(`${counts}${good === shown.length ? "" : ","} in ${seconds(took)}.`);
}

// The time, the vectors and everything below them.
function showMore(shown) {
  const good = answered(shown);
  const found = good
    .filter((picture) => records.get(picture).predict.features)
    .slice(0, MOST_COMPARED)
    .map((picture) => ({ picture, vector: records.get(picture).vector }));
  byId("try-more").hidden = good.length === 0;
  if (good.length === 0) return;
  byId("try-more").replaceChildren(
    column(timed, similarity(found, good.length)),
    column(features(found, model, head), commands(partsOf(shown, limits), model, topK())),
  );
}

function column(...panels) {
  return html("div", { class: "column" }, panels);
}

function results() {
  return pictures.map((picture) => {
    const record = records.get(picture);
    return record.predict ?? { error: record.refused ?? { title: "Not answered", detail: "It has not been sent." } };
  });
}

async function saveCsv() {
  const { csvOf, save } = await LATER.downloads();
  save("classes.csv", csvOf(pictures, results()), "text/csv");
}

async function saveJson() {
  const { jsonOf, save } = await LATER.downloads();
  const classes = model.classes > 0;
  const found = results().map(({ error, predictions, features: encoded }) => {
    if (error) return { error };
    return classes ? { predictions } : { features: [...decoded(encoded)] };
  });
  const first = { model: model.name, fingerprint: head.fingerprint, ...(classes ? { top_k: topK() } : {}) };
  save(classes ? "classes.json" : "features.json", jsonOf(pictures, found, first), "application/json");
}

// The API's JSON, made when it is looked at.
function showRaw() {
  byId("raw-json").textContent = byId("raw").open
    ? JSON.stringify({ ...head, results: results() }, null, 2)
    : "";
}

function cardOf(picture) {
  const away = html(
    "button",
    { type: "button", class: "away", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) },
    "×",
  );
  const title = html("h3", {}, html("span", {}, `${picture.name}, ${bytes(picture.file.size)}`), away);
  return html(
    "article",
    { class: "card", "aria-label": picture.name },
    thumbnail(picture),
    html("div", { class: "finding" }, title, html("div", { class: "found" })),
  );
}

// Show the result of the main task, or why there is none.
function fill(picture, result) {
  const { card, refused } = records.get(picture);
  const found = result?.predictions ? classesOf(result.predictions) : result?.error && problemBox(result.error);
  const missing = !result && html("p", { class: "note" }, refused ? `Refused: ${refused.title}.` : "Not answered.");
  card.querySelector(".found").replaceChildren(...[found, missing].filter(Boolean));
}

// The picture, or a plain field for formats that browsers do not show.
function thumbnail({ url, name }) {
  const image = html("img", {
    // Before its source, which is otherwise loaded at once.
    loading: "lazy",
    decoding: "async",
    src: url,
    alt: name,
    onerror: () => image.replaceWith(html("span", { class: "unseen" }, "no preview")),
  });
  return html("div", { class: "thumbnail" }, image);
}

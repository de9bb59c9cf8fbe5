/* Try: send pictures; show classes, request time, vectors and similarities. */

import { askJson, serverTiming } from "./api.js";
import { byId, html } from "./drawing.js";
import { bytes, counted, seconds } from "./format.js";
import { alike, neighboursOf } from "./neighbours.js";
import { problemBox, tell } from "./notices.js";
import { pictures, remove, watchBench } from "./pictures.js";
import { classesOf, commands, features, similarity, waterfall } from "./findings.js";

let model = null;
let running = new AbortController();

/** Start with the model `described`. */
export function start(described) {
  model = described;
  watchBench(look, (error) => tell(byId("try-notice"), error));
}

/** Send the same and further pictures to another model. */
export function choose(described) {
  model = described;
  look();
}

async function look() {
  running.abort();
  running = new AbortController();
  const shown = [...pictures];
  byId("try-empty").hidden = shown.length > 0;
  byId("clear").hidden = shown.length === 0;
  byId("try-notice").replaceChildren();
  byId("try-status").textContent = "";
  if (shown.length === 0) {
    show([]);
    busy(false);
    return;
  }
  busy(true);
  let named = false;
  let measured = false;
  try {
    const sent = { method: "POST", body: bodyOf(shown), signal: running.signal };
    const query = `?model=${encodeURIComponent(model.name)}`;
    const timed = model.classes > 0 && (await name(shown, query, sent));
    named = model.classes > 0;
    await measure(shown, query, sent, timed);
    measured = true;
    if (model.search) await find(query, sent);
  } catch (error) {
    if (error.name === "AbortError") return;
    // Earlier answers stay.
    if (!named && !measured) show(shown.map((picture) => card(picture)));
    if (!measured) byId("try-more").hidden = true;
    tell(byId("try-notice"), error, look);
  }
  busy(false);
}

function busy(is) {
  for (const place of [byId("answers"), byId("try-more")]) {
    if (is) place.setAttribute("aria-busy", "true");
    else place.removeAttribute("aria-busy");
  }
}

function show(cards) {
  byId("answers").replaceChildren(...cards);
  byId("answers").classList.toggle("single", cards.length === 1);
  if (cards.length === 0) byId("try-more").hidden = true;
}

// The classes, and the stages of that request.
async function name(shown, query, sent) {
  const sentAt = performance.now();
  const { answer, json } = await askJson(`v1/classify${query}`, sent);
  return tellAnswered(shown, json, answer, sentAt);
}

// The vectors and everything below them. For models without classes this is the only request.
async function measure(shown, query, sent, timed) {
  const sentAt = performance.now();
  const { answer, json } = await askJson(`v1/features${query}&encoding=base64`, sent);
  const first = timed || tellAnswered(shown, json, answer, sentAt);
  byId("try-more").replaceChildren(
    column(first, similarity(shown, json)),
    column(features(shown, json, model), commands(query, shown, model)),
  );
  byId("try-more").hidden = false;
}

function tellAnswered(shown, { results }, answer, sentAt) {
  const roundTrip = (performance.now() - sentAt) / 1e3;
  show(results.map((result, index) => card(shown[index], result)));
  byId("try-status").textContent = `${counted(shown.length, "picture")} answered in ${seconds(roundTrip)}.`;
  return waterfall(serverTiming(answer), roundTrip, shown.length);
}

// The most similar indexed pictures, under each answer.
async function find(query, sent) {
  const results = await neighboursOf(query, sent);
  results.forEach(({ neighbours }, index) => {
    if (neighbours) byId("answers").children[index].append(alike(neighbours, sent.signal));
  });
}

function column(...panels) {
  return html("div", { class: "column" }, panels);
}

function bodyOf(shown) {
  if (shown.length === 1) return shown[0].file;
  const form = new FormData();
  for (const { file, name } of shown) form.append("images", file, name);
  return form;
}

function card(picture, result) {
  const found = result?.error ? problemBox(result.error) : result?.predictions && classesOf(result.predictions);
  const away = html(
    "button",
    { type: "button", class: "away", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) },
    "×",
  );
  return html(
    "article",
    { class: "card", "aria-label": picture.name },
    thumbnail(picture),
    html("div", { class: "finding" }, html("h3", {}, html("span", {}, `${picture.name}, ${bytes(picture.file.size)}`), away), found),
  );
}

/** The picture, or a plain field for formats that browsers do not show. */
export function thumbnail({ url, name }) {
  const image = html("img", { src: url, alt: name, onerror: () => image.replaceWith(html("span", { class: "unseen" }, "no preview")) });
  return html("div", { class: "thumbnail" }, image);
}

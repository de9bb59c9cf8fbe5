/* Views of an answer: classes, waterfall, strips, matrix, commands. */

import { bar, stretch, strip } from "./charts.js";
import { commandBox, curlOf } from "./curl.js";
import { html } from "./drawing.js";
import { number, percent, seconds, whole } from "./format.js";
import { cosine, decoded, norm, zeros } from "./vectors.js";

/** The most probable classes as bars. */
export function classesOf(predictions) {
  return html(
    "ol",
    { class: "classes" },
    predictions.map(({ label, probability }) =>
      html(
        "li",
        {},
        html("span", { class: "label" }, label),
        html("span", { class: "figure" }, percent(probability)),
        bar(probability),
      ),
    ),
  );
}

const STAGES = {
  read: "the body off the network",
  decode: "file to pixels, resized and cropped",
  queue: "waiting for a batch",
  forward: "the network",
  rest: "answering, and what lies between",
};

/** The stages of a request: `timing` from its Server-Timing header, `roundTrip` in seconds as measured here. */
export function waterfall(timing, roundTrip, pictureCount) {
  const stages = timing.filter(({ name }) => name !== "total");
  const total = timing.find(({ name }) => name === "total")?.seconds ?? 0;
  const spent = stages.reduce((sum, stage) => sum + stage.seconds, 0);
  const rows = [...stages, { name: "rest", seconds: Math.max(0, total - spent) }];
  const whole = Math.max(total, spent, Number.MIN_VALUE);
  let start = 0;
  const drawn = rows.map(({ name, seconds: took }) => {
    const row = html(
      "tr",
      { "data-stage": name },
      html("th", { scope: "row" }, name, html("small", {}, STAGES[name])),
      html("td", { class: "drawn" }, stretch(start, took, whole, `stage-${name}`)),
      html("td", { class: "figure" }, seconds(took)),
    );
    start += took;
    return row;
  });
  const several = pictureCount > 1 ? " Of several pictures, the longest time that any spent in a stage counts." : "";
  return panel(
    "Where the time went",
    html("table", { class: "waterfall" }, html("tbody", {}, drawn)),
    html("p", { class: "note" }, `${seconds(total)} at the server, ${seconds(roundTrip)} as seen from here.${several}`),
  );
}

/** Each picture's vector as a strip. */
export function features(pictures, { dimensions, results }, { classes, feature_layer: layer }) {
  const rows = known(pictures, results).map(({ picture, vector }) =>
    html(
      "li",
      {},
      html("img", { src: picture.url, alt: "", class: "chip" }),
      html(
        "p",
        {},
        html("strong", {}, picture.name),
        ` norm ${number(norm(vector))}, ${percent(zeros(vector))} zeros`,
      ),
      strip(vector),
    ),
  );
  if (rows.length === 0) return null;
  const title = rows.length > 1 ? "Feature vectors" : "Feature vector";
  const origin = classes > 0 ? "the network's last layer sees" : `${layer ?? "the network"} gives`;
  const note = `${whole(dimensions)} dimensions, what ${origin}: from left to right, the stronger the further from zero.`;
  return panel(title, html("ul", { class: "strips" }, rows), html("p", { class: "note" }, note));
}

/** The similarity of several pictures as a table of cosines; nothing for one. */
export function similarity(pictures, { results }) {
  const found = known(pictures, results);
  if (found.length < 2) return null;
  const heads = found.map(({ picture }) => html("th", { scope: "col" }, chip(picture)));
  const rows = found.map(({ picture, vector }) =>
    html(
      "tr",
      {},
      html("th", { scope: "row" }, chip(picture)),
      found.map((other) => cell(cosine(vector, other.vector))),
    ),
  );
  const table = html(
    "table",
    { class: "matrix", "aria-label": "Cosine similarity of each two pictures" },
    html("thead", {}, html("tr", {}, html("td"), heads)),
    html("tbody", {}, rows),
  );
  const room = html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Similarity" }, table);
  const note = "The cosine of the angle between two vectors: 1 is the same direction, 0 nothing in common.";
  return panel("Similarity", room, html("p", { class: "note" }, note));
}

function cell(value) {
  const made = html("td", {}, value.toFixed(2).replace("-", "−"));
  made.style.setProperty("--share", `${Math.round(Math.max(0, value) * 100)}%`);
  return made;
}

function chip({ url, name }) {
  return html("img", { src: url, alt: name, title: name, class: "chip" });
}

function known(pictures, results) {
  return results.flatMap((result, index) =>
    result.error ? [] : [{ picture: pictures[index], vector: decoded(result.features) }],
  );
}

/** The requests as commands: for classes if the model has some, for neighbours if there is an index. */
export function commands(query, pictures, { classes, search }) {
  return panel(
    "The same from a shell",
    classes > 0 && commandBox("Classes", curlOf(`v1/classify${query}`, pictures)),
    commandBox("Features", curlOf(`v1/features${query}`, pictures)),
    search && commandBox("Neighbours", curlOf(`v1/search${query}`, pictures)),
  );
}

function panel(title, ...content) {
  return html("section", { class: "panel" }, html("h2", {}, title), content);
}

/* Views of an answer: classes, waterfall, strips, matrix, commands. */

import { bar, stretch, strip } from "./charts.js";
import { commandBox, copyButton, curlOf } from "./curl.js";
import { html } from "./drawing.js";
import { number, percent, seconds, whole } from "./format.js";
import { pythonOf } from "./python.js";
import { scrollable } from "./scrolling.js";
import { cosines, norm, zeros } from "./vectors.js";

/** Pictures whose vectors are shown and compared: a table of all 200 would have 40,000 cells. */
export const MOST_COMPARED = 64;

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

/** The stages of a request: `timing` from its Server-Timing header, `roundTrip` in seconds as measured here. It was the
 * last of `requests`. */
export function waterfall(timing, roundTrip, pictureCount, requests) {
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
  const last = requests > 1 ? `The last of ${requests} requests: ` : "";
  return panel(
    "Where the time went",
    html("table", { class: "waterfall" }, html("tbody", {}, drawn)),
    html("p", { class: "note" }, `${last}${seconds(total)} at the server, ${seconds(roundTrip)} as seen from here.${several}`),
  );
}

/** Each picture's vector as a strip, which can be copied. `found` are pictures with their vectors. */
export function features(found, { classes, feature_layer: layer, feature_dimensions: dimensions }, { fingerprint }) {
  const rows = found.map(({ picture, vector }) =>
    html(
      "li",
      {},
      html("img", { loading: "lazy", decoding: "async", src: picture.url, alt: "", class: "chip" }),
      html(
        "p",
        {},
        html("strong", {}, picture.name),
        ` norm ${number(norm(vector))}, ${percent(zeros(vector))} zeros`,
      ),
      copyVector(picture, vector),
      strip(vector),
    ),
  );
  if (rows.length === 0) return null;
  const title = rows.length > 1 ? "Feature vectors" : "Feature vector";
  const origin = classes > 0 ? "the network's last layer sees" : `${layer ?? "the network"} gives`;
  const note = `${whole(dimensions)} dimensions, what ${origin}: from left to right, the stronger the further from zero.`;
  const strips = html("ul", { class: "strips" }, rows);
  return panel(
    title,
    scrollable(strips, title, `Scroll to see all ${rows.length}.`),
    html("p", { class: "note" }, note),
    html("p", { class: "note" }, "Comparable with vectors of the same fingerprint, ", html("code", {}, fingerprint), "."),
  );
}

// The vector as JSON. Outside of a secure context it is saved as a file.
function copyVector({ name }, vector) {
  const text = () => JSON.stringify([...vector]);
  return copyButton(`the vector of ${name}`, text, async () => {
    const { save } = await import("./downloads.js");
    save(`${name}.json`, text(), "application/json");
    return "Saved";
  });
}

/** The similarity of several pictures as a table of cosines; nothing for one. `answered` is the number of pictures of
 * which `found` are the first. */
export function similarity(found, answered) {
  if (found.length < 2) return null;
  const similarities = cosines(found.map(({ vector }) => vector));
  const heads = found.map(({ picture }) => html("th", { scope: "col" }, chip(picture)));
  const rows = found.map(({ picture }, row) =>
    html("tr", {}, html("th", { scope: "row" }, chip(picture)), similarities[row].map(cell)),
  );
  const table = html(
    "table",
    { class: "matrix", "aria-label": "Cosine similarity of each two pictures" },
    html("thead", {}, html("tr", {}, html("td"), heads)),
    html("tbody", {}, rows),
  );
  const hint = `Scroll to see all ${found.length} × ${found.length}.`;
  const rest = answered > found.length ? ` Of ${answered} pictures, the first ${found.length} are compared.` : "";
  const note = `The cosine of the angle between two vectors: 1 is the same direction, 0 nothing in common.${rest}`;
  return panel("Similarity", scrollable(table, "Similarity", hint), html("p", { class: "note" }, note));
}

function cell(value) {
  const made = html("td", {}, value.toFixed(2).replace("-", "−"));
  made.style.setProperty("--share", `${Math.round(Math.max(0, value) * 100)}%`);
  return made;
}

function chip({ url, name }) {
  return html("img", { loading: "lazy", decoding: "async", src: url, alt: name, title: name, class: "chip" });
}

/** The requests as commands: for classes, and for both outputs, if the model has classes; for neighbours if there is an
 * index. `parts` are the pictures of each request. */
export function commands(parts, { name: model, classes, search }, topK) {
  const query = `?model=${encodeURIComponent(model)}`;
  const shell = (path) => parts.map((part) => curlOf(path, part)).join("\n");
  const box = (label, path) => commandBox(label, shell(path));
  const [path, parameters] = classes > 0 ? ["v1/classify", { model, top_k: topK }] : ["v1/features", { model }];
  return [
    panel(
      "The same from a shell",
      classes > 0
        ? [
            box("Classes", `v1/classify${query}&top_k=${topK}`),
            box("Classes and features", `v1/predict${query}&outputs=classes,features&top_k=${topK}`),
          ]
        : box("Features", `v1/features${query}`),
      search && box("Neighbours", `v1/search${query}`),
    ),
    panel("The same from Python", commandBox("Python", pythonOf(path, parameters, parts))),
  ];
}

function panel(title, ...content) {
  return html("section", { class: "panel" }, html("h2", {}, title), content);
}

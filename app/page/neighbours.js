/* Neighbours: the most similar indexed pictures, under each answer. */

import { ask, askJson } from "./api.js";
import { html } from "./drawing.js";

// One row under a single picture, two rows under one of several.
const MOST = 6;

/** The index's results for the pictures of `sent`, in order: {neighbours}, or {error} for a bad picture. */
export async function neighboursOf(query, sent) {
  return (await askJson(`v1/search${query}&k=${MOST}`, sent)).json.results;
}

/** Draw neighbours, with thumbnails if the index has them, until `signal` is aborted. */
export function alike(neighbours, signal) {
  const pictured = neighbours.some(({ thumbnail }) => thumbnail);
  const items = neighbours.map(({ row, path, similarity, thumbnail }) =>
    html(
      "li",
      { title: path },
      pictured && html("div", { class: "thumbnail" }, thumbnail ? small(row, path, signal) : blank()),
      html("span", { class: "figure" }, similarity.toFixed(3).replace("-", "−")),
      html("span", { class: "path" }, pictured ? nameIn(path) : path),
    ),
  );
  return html(
    "section",
    { class: "alike" },
    html("h4", {}, "Most alike in the index"),
    html("ol", { class: pictured ? "pictured" : "listed" }, items),
  );
}

function nameIn(path) {
  return path.slice(path.lastIndexOf("/") + 1);
}

function blank() {
  return html("span", { class: "unseen" }, "no preview");
}

// Fetched instead of linked, because a link cannot carry a key.
function small(row, path, signal) {
  const image = html("img", { alt: path });
  fill(image, row, signal);
  return image;
}

async function fill(image, row, signal) {
  try {
    const url = URL.createObjectURL(await (await ask(`v1/search/thumbnails/${row}`, { signal })).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch {
    image.replaceWith(blank());
  }
}

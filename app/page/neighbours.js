/* Neighbours: the indexed pictures most like one, under its answer. */

import { ask, askJson } from "./api.js";
import { html } from "./drawing.js";

// As many as stand in one row of a single picture's answer, in two of one among several.
const MOST = 6;

/** What the index has for the pictures of `sent`, in their order: {neighbours}, or {error} in a bad one's place. */
export async function neighboursOf(query, sent) {
  return (await askJson(`v1/search${query}&k=${MOST}`, sent)).json.results;
}

/** They, drawn: with the index's small pictures where it keeps some. Until `signal` says that nobody looks any more. */
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

// Asked for and not linked: a link has no place for a key.
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

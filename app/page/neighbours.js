/* Neighbours: the most similar indexed pictures, under each answer. */

import { ask } from "./api.js";
import { html } from "./drawing.js";

/** Draw neighbours, with thumbnails if the index has them. */
export function alike(neighbours) {
  const pictured = neighbours.some(({ thumbnail }) => thumbnail);
  const items = neighbours.map(({ row, path, similarity, thumbnail }) =>
    html(
      "li",
      { title: path },
      pictured && html("div", { class: "thumbnail" }, thumbnail ? small(row, path) : blank()),
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
function small(row, path) {
  const image = html("img", { alt: path, decoding: "async" });
  fill(image, row);
  return image;
}

async function fill(image, row) {
  try {
    const url = URL.createObjectURL(await (await ask(`v1/search/thumbnails/${row}`)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch {
    image.replaceWith(blank());
  }
}

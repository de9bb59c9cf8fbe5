/* The pictures on the page: chosen, dropped, pasted or samples of the server. Listeners are called on each change. */

import { ask } from "./api.js";
import { byId } from "./drawing.js";

/** The current pictures: [{file, name, url, sample}]. `url` is valid until the picture is removed. */
export const pictures = [];

let changed = () => {};
let failed = () => {};

/** Accept pictures. `onChange(again)` is called after each change, with a picture that is to be sent again, if there is
 * one; `onFault(error)` if a sample fails to load. */
export function watchBench(onChange, onFault) {
  changed = onChange;
  failed = onFault;
  const input = byId("files");
  byId("drop").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    put([...input.files]);
    // Allows the same file to be chosen again.
    input.value = "";
  });
  byId("clear").addEventListener("click", clear);
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => putSample(button.dataset.sample));
  }
  document.addEventListener("paste", (event) => put([...(event.clipboardData?.files ?? [])]));
  watchDrops();
}

function watchDrops() {
  const drop = byId("drop");
  let depth = 0;
  const over = (change) => drop.classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
  addEventListener("dragenter", () => over(+1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    put([...event.dataTransfer.files]);
  });
}

function put(files, sample = false) {
  if (files.length === 0) return;
  for (const file of files) {
    pictures.push({ file, name: file.name || "pasted", url: URL.createObjectURL(file), sample });
  }
  // Dropped or pasted in any view, they are shown in this one.
  if (byId("view-try").hidden) location.hash = "try";
  changed();
}

async function putSample(name) {
  const fileName = `${name}.jpg`;
  // A repeated picture is only sent again.
  const again = pictures.find((picture) => picture.sample && picture.name === fileName);
  if (again) {
    changed(again);
    return;
  }
  try {
    const blob = await (await ask(`samples/${fileName}`)).blob();
    put([new File([blob], fileName, { type: blob.type })], true);
  } catch (error) {
    failed(error);
  }
}

/** Remove one picture. */
export function remove(picture) {
  pictures.splice(pictures.indexOf(picture), 1);
  URL.revokeObjectURL(picture.url);
  changed();
}

function clear() {
  for (const { url } of pictures) URL.revokeObjectURL(url);
  pictures.length = 0;
  changed();
}

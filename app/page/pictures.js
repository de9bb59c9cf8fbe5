/* The pictures on the bench: chosen, dropped, pasted or drawn by the server. Who watches is told of each change. */

import { ask } from "./api.js";
import { byId } from "./drawing.js";

/** What is on the bench: [{file, name, url, sample}]. `url` shows it, for as long as it lies there. */
export const pictures = [];

let changed = () => {};
let failed = () => {};

/** Take in pictures from now on. `onChange()` follows each change, `onFault(error)` a sample that did not come. */
export function watchBench(onChange, onFault) {
  changed = onChange;
  failed = onFault;
  const input = byId("files");
  byId("drop").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    put([...input.files]);
    // So that the same file can be chosen again.
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
  // Wherever they were dropped or pasted, this is where they are looked at.
  if (byId("view-try").hidden) location.hash = "try";
  changed();
}

async function putSample(name) {
  const fileName = `${name}.jpg`;
  // A second time it is the same picture: only asked about again.
  if (pictures.some((picture) => picture.sample && picture.name === fileName)) {
    changed();
    return;
  }
  try {
    const blob = await (await ask(`samples/${fileName}`)).blob();
    put([new File([blob], fileName, { type: blob.type })], true);
  } catch (error) {
    failed(error);
  }
}

/** Take one picture off the bench. */
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

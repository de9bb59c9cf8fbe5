/* Requests with many pictures: parts within the server's limits, sent one after another. */

import { askJson } from "./api.js";

// With a server at capacity, a part is sent as often as this, and waits at most so long between.
const MOST_TRIES = 4;
const LONGEST_WAIT_S = 10;

// Of a multipart body, for each file's header.
const HEADER_BYTES = 1000;

/** `pictures` in parts of one request each, in order. A picture that is too large for any request has its own. */
export function partsOf(pictures, { images, request_bytes: bytes }) {
  const parts = [];
  let room = 0;
  for (const picture of pictures) {
    const size = picture.file.size + HEADER_BYTES;
    const part = parts.at(-1);
    if (part && part.length < images && size <= room) {
      part.push(picture);
      room -= size;
    } else {
      parts.push([picture]);
      room = bytes - size;
    }
  }
  return parts;
}

/** The answer to one part, with its JSON. A refusal with 429 is repeated after the time that it names, which `onWait`
 * is told in seconds. Raises as `askJson`. */
export async function send(path, part, { signal, onWait }) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await askJson(path, { method: "POST", body: bodyOf(part), signal });
    } catch (error) {
      if (error.status !== 429 || tries === MOST_TRIES) throw error;
      const wait = Math.min(error.retryAfter || 1, LONGEST_WAIT_S);
      onWait(wait);
      await pause(wait, signal);
    }
  }
}

function bodyOf(part) {
  if (part.length === 1) return part[0].file;
  const form = new FormData();
  for (const { file, name } of part) form.append("images", file, name);
  return form;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1e3);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

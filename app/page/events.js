/* Server-sent events off the answer to a POST, which EventSource cannot send. */

import { broken } from "./api.js";

/** The events of an answer as they come: {name, data}. Raises Problem where nothing comes for `patienceMs`. */
export async function* events(answer, { signal, patienceMs }) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await inTime(reader, signal, patienceMs);
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      yield* blocks.map(parsed).filter(({ data }) => data !== "");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function inTime(reader, signal, patienceMs) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), patienceMs);
  });
  try {
    return await Promise.race([reader.read(), late]);
  } catch (error) {
    throw broken(signal, { aborted: error.message === "silence" }, patienceMs);
  } finally {
    clearTimeout(timer);
  }
}

function parsed(block) {
  const event = { name: "message", data: "" };
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = line.match(/^(\w+): ?(.*)$/) ?? [];
    if (field === "event") event.name = value;
    if (field === "data") event.data += (event.data && "\n") + value;
  }
  return event;
}

/* Server-sent events in the answer to a POST, which EventSource cannot send. */

import { broken } from "./api.js";

/** Yield the events of an answer: {name, data}. Raises Problem if none arrives for `timeoutMs`. */
export async function* events(answer, { signal, timeoutMs }) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await inTime(reader, signal, timeoutMs);
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      yield* blocks.map(parsed).filter(({ data }) => data !== "");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function inTime(reader, signal, timeoutMs) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), timeoutMs);
  });
  try {
    return await Promise.race([reader.read(), late]);
  } catch (error) {
    throw broken(signal, { aborted: error.message === "silence" }, timeoutMs);
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

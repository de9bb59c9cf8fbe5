/* Requests to this server. What comes back is an answer, or a Problem that can be shown as it is. */

const PATIENCE_MS = 60_000;

// Of a body so large that a server may break off the connection rather than hear it to its end.
const LARGE_BODY_BYTES = 1_000_000;

/** A fault in the words of RFC 9457: the server's own, or this page's for a server that says nothing. */
export class Problem extends Error {
  constructor({ title, detail, type, status, request_id: requestId }) {
    super(title);
    Object.assign(this, { title, detail, type, status, requestId });
  }
}

/** The absolute address of a path under this page, wherever a proxy has put it. */
export function address(path) {
  return new URL(path, new URL(".", location.href)).href;
}

// Of this tab, and no longer than it is open.
const KEY = "gradless.key";

/** Send this API key along from now on. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Whether a key is sent along. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function signed(headers) {
  return hasKey() ? { ...headers, Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : headers;
}

const listeners = new Set();

/** Call `listener` with true or false whenever a request was answered or was not. */
export function onReached(listener) {
  listeners.add(listener);
}

function reached(answered) {
  for (const listener of listeners) listener(answered);
}

/**
 * The server's answer, its body not yet read. Raises Problem, or AbortError where `signal` was aborted.
 * Body and all must come within `patienceMs`; of a `lasting` answer only its beginning.
 */
export async function ask(path, { signal, patienceMs = PATIENCE_MS, lasting = false, headers, ...options } = {}) {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), patienceMs);
  let answer;
  try {
    const either = AbortSignal.any([late.signal, ...(signal ? [signal] : [])]);
    answer = await fetch(address(path), { ...options, headers: signed(headers), signal: either });
  } catch {
    throw broken(signal, late.signal, patienceMs, options.body);
  }
  if (lasting) clearTimeout(timer);
  reached(true);
  if (!answer.ok) throw await problemIn(answer);
  return answer;
}

/** The JSON of an answer, with the answer. Raises as `ask`. */
export async function askJson(path, options = {}) {
  const answer = await ask(path, options);
  try {
    return { answer, json: await answer.json() };
  } catch {
    throw broken(options.signal);
  }
}

/** Why a request has no answer: its caller's wish, the clock, or the connection. */
export function broken(signal, late, patienceMs, body) {
  if (signal?.aborted) return new DOMException("not wanted any more", "AbortError");
  reached(false);
  if (late?.aborted) {
    return new Problem({ title: "No answer", detail: `The server said nothing for ${patienceMs / 1000} s.` });
  }
  const large = bodyBytes(body) > LARGE_BODY_BYTES ? " It may refuse a body this large without hearing it to its end." : "";
  return new Problem({
    title: "The server cannot be reached",
    detail: `There is no connection to ${location.host}, or it broke off.${large}`,
  });
}

function bodyBytes(body) {
  const files = body instanceof FormData ? [...body.values()] : [body];
  return files.reduce((sum, file) => sum + (file instanceof Blob ? file.size : 0), 0);
}

async function problemIn(answer) {
  const text = await answer.text().catch(() => "");
  if (answer.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    return new Problem(JSON.parse(text));
  }
  // A proxy's page, say. Its HTML helps nobody.
  return new Problem({ title: `HTTP ${answer.status}`, detail: answer.statusText, status: answer.status });
}

/** The parts of an answer's Server-Timing header, in order: [{name, seconds}]. */
export function serverTiming(answer) {
  const header = answer.headers.get("Server-Timing") ?? "";
  return [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, duration]) => ({
    name,
    seconds: Number(duration) / 1e3,
  }));
}

/* Requests to this server. The result is an answer, or a Problem to show. */

const TIMEOUT_MS = 60_000;

// Bodies above this size may be refused by closing the connection.
const LARGE_BODY_BYTES = 1_000_000;

/** A problem as in RFC 9457: the server's, or this page's for a server that does not answer. `retryAfter` is in seconds,
 * if the server named a time. */
export class Problem extends Error {
  constructor({ title, detail, type, status, request_id: requestId }, retryAfter) {
    super(title);
    Object.assign(this, { title, detail, type, status, requestId, retryAfter });
  }

  /** As the server sent it. */
  toJSON() {
    const { type, title, status, detail, requestId: request_id } = this;
    return { type, title, status, detail, request_id };
  }
}

/** The absolute address of a path under this page, including a proxy's prefix. */
export function address(path) {
  return new URL(path, new URL(".", location.href)).href;
}

// Stored for this tab, until it is closed.
const KEY = "gradless.key";

/** Send this API key with all further requests. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Whether a key is sent. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function signed(headers) {
  return hasKey() ? { ...headers, Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : headers;
}

const listeners = new Set();

/** Call `listener` with true after each answered request, and with false after others. */
export function onReached(listener) {
  listeners.add(listener);
}

function reached(answered) {
  for (const listener of listeners) listener(answered);
}

/**
 * The server's answer with an unread body. Raises Problem, or AbortError if `signal` was aborted.
 * The whole answer must arrive within `timeoutMs`; of a `lasting` answer only the head.
 */
export async function ask(path, { signal, timeoutMs = TIMEOUT_MS, lasting = false, headers, ...options } = {}) {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), timeoutMs);
  let answer;
  try {
    const either = AbortSignal.any([late.signal, ...(signal ? [signal] : [])]);
    answer = await fetch(address(path), { ...options, headers: signed(headers), signal: either });
  } catch {
    throw broken(signal, late.signal, timeoutMs, options.body);
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

/** Why a request has no answer: abort, timeout or connection. */
export function broken(signal, late, timeoutMs, body) {
  if (signal?.aborted) return new DOMException("aborted", "AbortError");
  reached(false);
  if (late?.aborted) {
    return new Problem({ title: "No answer", detail: `The server said nothing for ${timeoutMs / 1000} s.` });
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
    return new Problem(JSON.parse(text), Number(answer.headers.get("Retry-After")));
  }
  // For example a proxy's error page, whose HTML is not shown.
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

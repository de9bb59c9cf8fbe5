/* Live: the service's metrics, scraped from /metrics while the view is open. */

import { ask, Problem } from "./api.js";
import { byId, html } from "./drawing.js";
import { bucketGrowth, growth, quantile, read, sum } from "./exposition.js";
import { frames, HISTORY_S, show, WINDOW_S } from "./gauges.js";
import { tell } from "./notices.js";

const EVERY_MS = 2000;
const TIMEOUT_MS = 10_000;
const SLACK_S = 1;

const STAGES = ["read", "decode", "queue", "forward", "respond"];

/** The routes that accept images, in all protocols. */
const IMAGE_ROUTES = new Set([
  "/v1/classify",
  "/v1/features",
  "/v1/predict",
  "/v1/search",
  "/v1/embeddings",
  "/v1/models/{name}:predict",
  "/v2/models/{name}/infer",
  "/inference.GRPCInferenceService/ModelInfer",
  "/predictions/{name}",
  "/invocations",
  "/hf/{name}",
  "/",
]);

const ofImages = ({ route = "", method }) => (method === "POST" || method === "PUT") && IMAGE_ROUTES.has(route);

let scrapes = [];
let history = [];
let open = false;
let timer = null;

/** Build the view in its panel. */
export function build() {
  byId("view-live").replaceChildren(html("div", { id: "live-notice" }), html("div", { class: "gauges" }, frames()));
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : resume()));
}

/** Start scraping. */
export function enter() {
  open = true;
  resume();
}

/** Stop scraping. */
export function leave() {
  open = false;
  pause();
}

function resume() {
  pause();
  if (open && !document.hidden) look();
}

function pause() {
  clearTimeout(timer);
}

async function look() {
  try {
    const answer = await ask("metrics", { headers: { Accept: "text/plain" }, timeoutMs: TIMEOUT_MS });
    take(read(await answer.text()));
    byId("live-notice").replaceChildren();
  } catch (error) {
    // Shown once, not every two seconds.
    if (byId("live-notice").childElementCount === 0) tell(byId("live-notice"), lost(error));
  }
  pause();
  if (open && !document.hidden) timer = setTimeout(look, EVERY_MS);
}

function lost({ title, detail, message, status }) {
  const again = `Asking again every ${EVERY_MS / 1000} s.`;
  return new Problem({ title: title ?? "The metrics cannot be read", detail: `${detail ?? message} ${again}`, status });
}

function take(scrape) {
  const at = performance.now() / 1e3;
  scrapes = [...scrapes.filter((old) => at - old.at <= WINDOW_S + SLACK_S), { at, scrape }];
  // The view was closed for a while: no line crosses that time.
  if (scrapes.length === 1) history.push({ at });
  history = [...history.filter((old) => at - old.at <= HISTORY_S), { at, ...figures() }];
  show(history);
}

/** Values of the last scrapes: rates since the previous one, distributions over the window. */
function figures() {
  const { at, scrape } = scrapes.at(-1);
  const before = scrapes.at(-2);
  const [earlier] = scrapes;
  const rate = (name, accepts) => (before ? growth(before.scrape, scrape, name, accepts) / (at - before.at) : null);
  const durations = bucketGrowth(earlier.scrape, scrape, "gradless_request_duration_seconds", ofImages);
  const batches = growth(earlier.scrape, scrape, "gradless_batch_size_count");
  return {
    requests: rate("gradless_requests_total", ofImages),
    images: rate("gradless_images_total"),
    refused: rate("gradless_rejected_total"),
    median: quantile(0.5, durations),
    slow: quantile(0.99, durations),
    batch: batches ? growth(earlier.scrape, scrape, "gradless_batch_size_sum") / batches : null,
    batches: bucketGrowth(earlier.scrape, scrape, "gradless_batch_size"),
    waiting: sum(scrape, "gradless_queue_depth"),
    inside: sum(scrape, "gradless_in_flight_images"),
    oldest: Math.max(0, ...(scrape.get("gradless_queue_oldest_age_seconds") ?? []).map(({ value }) => value)),
    resident: sum(scrape, "process_resident_memory_bytes") || null,
    device: sum(scrape, "gradless_device_memory_bytes", ({ device, kind }) => device !== "cpu" && kind === "allocated") || null,
    free: sum(scrape, "gradless_device_memory_bytes", ({ kind }) => kind === "free"),
    stages: STAGES.map((stage) => stageMean(earlier.scrape, scrape, stage)),
  };
}

function stageMean(before, after, stage) {
  const of = (part) => growth(before, after, `gradless_stage_duration_seconds_${part}`, (labels) => labels.stage === stage);
  const count = of("count");
  return { stage, mean: count ? of("sum") / count : null };
}

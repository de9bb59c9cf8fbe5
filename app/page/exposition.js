/* A parser of the Prometheus text format, and differences between scrapes. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n", '"': '"', "\\": "\\" };

/** The samples of an exposition by name: a Map of [{labels, value}]. */
export function read(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, labels, value] = line.match(SAMPLE) ?? [];
    if (name === undefined) continue;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels: labelsIn(labels ?? ""), value: numberIn(value) });
  }
  return found;
}

function labelsIn(text) {
  const pairs = [...text.matchAll(LABEL)].map(([, name, value]) => [
    name,
    value.replaceAll(/\\(.)/g, (_, character) => ESCAPED[character] ?? character),
  ]);
  return Object.fromEntries(pairs);
}

function numberIn(text) {
  return text === "+Inf" ? Infinity : Number(text);
}

/** The sum of the samples of that name whose labels satisfy `accepts`. */
export function sum(scrape, name, accepts = () => true) {
  const chosen = (scrape.get(name) ?? []).filter(({ labels }) => accepts(labels));
  return chosen.reduce((total, { value }) => total + value, 0);
}

/** The growth of a counter between two scrapes; its whole value after a server restart. */
export function growth(before, after, name, accepts) {
  const [old, now] = [sum(before, name, accepts), sum(after, name, accepts)];
  return now >= old ? now - old : now;
}

/** A histogram's growth: [{upTo, count}], buckets in order, not cumulative. */
export function bucketGrowth(before, after, name, accepts = () => true) {
  const bucket = `${name}_bucket`;
  const bounds = new Set((after.get(bucket) ?? []).filter(({ labels }) => accepts(labels)).map(({ labels }) => labels.le));
  let below = 0;
  return [...bounds]
    .sort((a, b) => numberIn(a) - numberIn(b))
    .map((le) => {
      const upTo = growth(before, after, bucket, (labels) => labels.le === le && accepts(labels));
      const count = Math.max(0, upTo - below);
      below = upTo;
      return { upTo: numberIn(le), count };
    });
}

/** The `share` quantile of a histogram's growth, linear within a bucket as in PromQL; null without growth. */
export function quantile(share, buckets) {
  const all = buckets.reduce((total, { count }) => total + count, 0);
  if (all === 0) return null;
  let below = 0;
  let from = 0;
  for (const { upTo, count } of buckets) {
    if (below + count >= share * all && count > 0) {
      return upTo === Infinity ? from : from + ((upTo - from) * (share * all - below)) / count;
    }
    below += count;
    from = upTo;
  }
  return from;
}

/* Charts of one row each, drawn in shares of their width: they fit wherever they are put. */

import { svg } from "./drawing.js";
import { strongest } from "./vectors.js";

function share(fraction) {
  return `${(Math.min(Math.max(fraction, 0), 1) * 100).toFixed(2)}%`;
}

/** A bar of `fraction` of the row. `name` is a class that colours it. */
export function bar(fraction, name = "") {
  const length = svg("rect", { class: `length ${name}`, width: share(fraction), height: "100%" });
  return svg("svg", { class: "bar", "aria-hidden": "true" }, length);
}

/** A bar to `middle`, and a whisker from `low` to `high`, all of `most`. */
export function barWithSpread({ low, middle, high }, most, name = "") {
  const [from, to] = [share(low / most), share(high / most)];
  const spread = svg(
    "g",
    { class: "spread" },
    svg("line", { x1: from, x2: to, y1: "50%", y2: "50%" }),
    svg("line", { x1: from, x2: from, y1: "20%", y2: "80%" }),
    svg("line", { x1: to, x2: to, y1: "20%", y2: "80%" }),
  );
  const drawing = bar(middle / most, name);
  drawing.append(spread);
  return drawing;
}

/** A stretch of the row, from `start` on, `length` long, both of `whole`. */
export function stretch(start, length, whole, name) {
  const piece = svg("rect", { class: `length ${name}`, x: share(start / whole), width: share(length / whole), height: "100%" });
  return svg("svg", { class: "bar", "aria-hidden": "true" }, piece);
}

const SHADES = 8;

// A map of an inner layer can have a million numbers, and no screen so many columns.
const MOST_COLUMNS = 4096;

/** A vector as a strip of one column a number, or for neighbours where there are too many of them the strongest: the
 * stronger the further from zero, the largest of them the strongest. */
export function strip(numbers) {
  const vector = strongest(numbers, Math.ceil(numbers.length / MOST_COLUMNS));
  const most = vector.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
  const columns = new Map();
  vector.forEach((value, index) => {
    // The root, because most numbers are small and would all look alike.
    const shade = Math.ceil(Math.sqrt(Math.abs(value) / most) * SHADES);
    if (shade === 0) return;
    const key = `${value > 0 ? "above" : "below"} ${shade}`;
    // One path a shade and not one rectangle a number: thousands of elements would be slow to draw.
    columns.set(key, `${columns.get(key) ?? ""}M${index} 0h1v1h-1z`);
  });
  const paths = [...columns].map(([key, path]) => {
    const [side, shade] = key.split(" ");
    return svg("path", { class: side, d: path, "fill-opacity": (shade / SHADES).toFixed(3) });
  });
  const view = { viewBox: `0 0 ${vector.length} 1`, preserveAspectRatio: "none" };
  return svg("svg", { class: "strip", "aria-hidden": "true", ...view }, paths);
}

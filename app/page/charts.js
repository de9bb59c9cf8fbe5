/* Charts of one row, drawn in fractions of their width. */

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

/** A segment of the row from `start`, `length` long, both as parts of `whole`. */
export function stretch(start, length, whole, name) {
  const piece = svg("rect", { class: `length ${name}`, x: share(start / whole), width: share(length / whole), height: "100%" });
  return svg("svg", { class: "bar", "aria-hidden": "true" }, piece);
}

const SHADES = 8;

// A feature map can have a million numbers, more than a screen has columns.
const MOST_COLUMNS = 4096;

/** A vector as a strip with one column a number, or one for several of them, the furthest from zero. Columns are darker
 * the further their number is from zero. */
export function strip(numbers) {
  const vector = strongest(numbers, Math.ceil(numbers.length / MOST_COLUMNS));
  const most = vector.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
  const columns = new Map();
  vector.forEach((value, index) => {
    // The square root, because most numbers are small and would look the same.
    const shade = Math.ceil(Math.sqrt(Math.abs(value) / most) * SHADES);
    if (shade === 0) return;
    const key = `${value > 0 ? "above" : "below"} ${shade}`;
    // One path a shade, because thousands of rectangles would be slow.
    columns.set(key, `${columns.get(key) ?? ""}M${index} 0h1v1h-1z`);
  });
  const paths = [...columns].map(([key, path]) => {
    const [side, shade] = key.split(" ");
    return svg("path", { class: side, d: path, "fill-opacity": (shade / SHADES).toFixed(3) });
  });
  const view = { viewBox: `0 0 ${vector.length} 1`, preserveAspectRatio: "none" };
  return svg("svg", { class: "strip", "aria-hidden": "true", ...view }, paths);
}

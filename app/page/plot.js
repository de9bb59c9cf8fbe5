/* Line charts with axes, redrawn for their width. */

import { svg } from "./drawing.js";

const HEIGHT = 150;
const BELOW = 22;
const ABOVE = 10;
const RIGHT = 10;
const LETTER = 6.6;
// Round numbers with round halves.
const STEPS = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];

/**
 * A line chart inside `host`. Returns `show(chart)`, to be called for each update:
 * {label, series: [{name, points: [[x, y or null]]}], from, to, ticks: [[x, text]], format(y), marks}.
 * A point of null breaks its line; `name` is a class that colours it; `marks` puts a dot on each point.
 */
export function plot(host) {
  let chart = null;
  let width = 0;
  const draw = () => chart && width > 0 && host.replaceChildren(drawing(chart, width));
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.round(contentRect.width) === width) return;
    width = Math.round(contentRect.width);
    draw();
  }).observe(host);
  return (next) => {
    chart = next;
    draw();
  };
}

/** The least round number that is at least `value`. */
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return STEPS.find((step) => step * power >= value * 0.999999) * power;
}

function drawing({ label, series, from, to, ticks, format, marks = false }, width) {
  const values = series.flatMap(({ points }) => points.map(([, y]) => y ?? 0));
  const top = roundUp(Math.max(...values, 0));
  const left = Math.max(...[0, top / 2, top].map((y) => format(y).length)) * LETTER + 10;
  const x = (value) => left + ((value - from) / (to - from || 1)) * (width - left - RIGHT);
  const y = (value) => ABOVE + (1 - value / top) * (HEIGHT - ABOVE - BELOW);
  const levels = [0, top / 2, top].map((level) => [
    svg("line", { class: "level", x1: left, x2: width - RIGHT, y1: y(level), y2: y(level) }),
    svg("text", { x: left - 8, y: y(level) + 4, "text-anchor": "end" }, format(level)),
  ]);
  const lines = series.map(({ name, points }) => [
    svg("path", { class: `line ${name}`, d: path(points, x, y) }),
    (marks || points.length === 1) && points.filter(([, value]) => value != null).map(([at, value]) => dot(name, x(at), y(value))),
  ]);
  return svg(
    "svg",
    { class: "plot", role: "img", "aria-label": label, width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` },
    ...levels.flat(),
    ...tickLabels(ticks, x, width),
    ...lines.flat(2),
  );
}

function dot(name, cx, cy) {
  return svg("circle", { class: `dot ${name}`, cx, cy, r: 2.5 });
}

function path(points, x, y) {
  let pen = "M";
  return points
    .map(([at, value]) => {
      if (value == null) {
        pen = "M";
        return "";
      }
      const step = `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
      return step;
    })
    .join("");
}

function tickLabels(ticks, x, width) {
  let end = -Infinity;
  return ticks.flatMap(([at, text]) => {
    const half = (text.length * LETTER) / 2;
    const middle = Math.min(x(at), width - half);
    // Labels that would overlap are left out.
    if (middle - half < end + 4) return [];
    end = middle + half;
    return [svg("text", { x: middle, y: HEIGHT - 5, "text-anchor": "middle" }, text)];
  });
}

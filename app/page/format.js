/* Numbers with three digits and a fitting unit. */

const SPACE = "\u00a0";

function figures(value, digits = 3) {
  return new Intl.NumberFormat("en", { maximumSignificantDigits: digits, useGrouping: true }).format(value);
}

function scaled(value, step, units, smallest = 0) {
  let power = smallest;
  let size = value;
  while (Math.abs(Number(size.toPrecision(3))) >= step && power < units.length - 1) {
    size /= step;
    power += 1;
  }
  return figures(size) + SPACE + units[power];
}

/** Bytes in powers of 1000, as memory is reported here: 635900000 is "636 MB". */
export function bytes(value) {
  return scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"]);
}

/** 0.0123 is "12.3 ms". */
export function seconds(value) {
  if (value >= 0.9995) return figures(value) + SPACE + "s";
  if (value >= 0.9995e-3 || value === 0) return figures(value * 1e3) + SPACE + "ms";
  return figures(value * 1e6) + SPACE + "µs";
}

/** 4650000 is "4.65 M". */
export function count(value) {
  return scaled(value, 1000, ["", "k", "M", "G"]).trim();
}

/** ["A", "B", "C"] is "A, B, or C". */
export function either(names) {
  return new Intl.ListFormat("en", { type: "disjunction" }).format(names);
}

/** A whole number with separated thousands. */
export function whole(value) {
  return new Intl.NumberFormat("en", { maximumFractionDigits: 0 }).format(value);
}

/** Up to three digits, for rates and lengths. */
export function number(value) {
  return figures(value);
}

/** 0.536 is "53.6 %". */
export function percent(value) {
  return (value * 100).toFixed(1) + SPACE + "%";
}

/** "1 picture", "3 pictures". */
export function counted(value, noun) {
  return `${whole(value)}${SPACE}${noun}${value === 1 ? "" : "s"}`;
}

/** The same text, with non-breaking spaces between numbers and units. */
export function glued(text) {
  return text.replaceAll(/(\d) (?=([kMGT]?B|m?s|µs|%|images?)\b|%)/g, `$1${SPACE}`);
}

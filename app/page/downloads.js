/* Results as files: CSV for spreadsheets, JSON for programs. */

/** The classes of pictures as CSV (RFC 4180): a row for each, also for one without an answer, which has an error.
 * `results` are the API's, in order. */
export function csvOf(pictures, results) {
  const most = Math.max(...results.map(({ predictions = [] }) => predictions.length));
  const ranks = Array.from({ length: most }, (_, index) => index + 1);
  const heads = ranks.flatMap((rank) => [`label_${rank}`, `index_${rank}`, `probability_${rank}`]);
  const rows = pictures.map(({ name }, place) => {
    const { predictions = [], error } = results[place];
    const cells = ranks.flatMap((_, rank) => {
      const found = predictions[rank];
      return found ? [text(found.label), found.index, found.probability] : ["", "", ""];
    });
    return [text(name), error ? text(`${error.title}: ${error.detail}`) : "", ...cells];
  });
  return [["file", "error", ...heads], ...rows].map((row) => `${row.join(",")}\r\n`).join("");
}

// A spreadsheet would run a cell that begins with one of these as a formula.
const FORMULA = /^[=+\-@\t\r\n]/;

function text(value) {
  const harmless = FORMULA.test(value) ? `'${value}` : value;
  return `"${harmless.replaceAll('"', '""')}"`;
}

/** The same as JSON, with `head` before the results. */
export function jsonOf(pictures, results, head) {
  const found = pictures.map(({ name: file }, place) => ({ file, ...results[place] }));
  return `${JSON.stringify({ ...head, results: found }, null, 2)}\n`;
}

/** Give the browser a file to save. */
export function save(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // The browser reads it after this.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/* Shell commands for the same requests, which work for any file name, and buttons that copy. */

import { address, hasKey } from "./api.js";
import { html } from "./drawing.js";

/** One word of a POSIX shell, quoted if needed. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`;
}

// One option a line.
function lines(...parts) {
  return parts.join(" \\\n  ");
}

// The key itself is not copied.
function signature() {
  return hasKey() ? ['-H "Authorization: Bearer $GRADLESS_KEY"'] : [];
}

/** The command that sends `pictures`, or nothing, to `path`. A sample is fetched from this server first. */
export function curlOf(path, pictures) {
  const target = quoted(address(path));
  if (pictures.length === 0) return lines("curl -X POST", ...signature(), target);
  if (pictures.length > 1) {
    const fetched = pictures.filter(({ sample }) => sample).map(({ name }) => `curl -sO ${quoted(sampleAt(name))}\n`);
    return fetched.join("") + lines("curl", ...pictures.map(({ name }) => `-F ${quoted(formOf(name))}`), ...signature(), target);
  }
  const [{ name, sample }] = pictures;
  if (sample) return lines(`curl -s ${quoted(sampleAt(name))}`, "| curl --data-binary @-", ...signature(), target);
  return lines(`curl --data-binary ${quoted(`@${name}`)}`, ...signature(), target);
}

function sampleAt(name) {
  return address(`samples/${name}`);
}

// curl's own quotes inside the shell's, because a name may contain separators of -F.
function formOf(name) {
  return `images=@"${name.replaceAll(/["\\]/g, String.raw`\$&`)}"`;
}

/** A button that copies `text()`. Where the browser does not allow that, as outside of a secure context, it calls
 * `instead()`, whose result says in the button what was done. */
export function copyButton(label, text, instead) {
  const button = html("button", { type: "button", class: "quiet", "aria-label": `Copy ${label}`, onclick: copy }, "Copy");
  async function copy() {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = await instead();
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
  return button;
}

/** A command on the page, with a button that copies it. */
export function commandBox(label, command) {
  const text = html("pre", { tabindex: "0", role: "group", "aria-label": `${label} command` }, html("code", {}, command));
  // To be copied by hand.
  const select = () => {
    getSelection().selectAllChildren(text);
    return "Selected";
  };
  const button = copyButton(label, () => command, select);
  return html("figure", { class: "command" }, html("figcaption", {}, label, button), text);
}

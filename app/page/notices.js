/* Error notices and hints, shown next to their cause. */

import { Problem, useKey } from "./api.js";
import { html } from "./drawing.js";

/** Show the problem in `place`, with the server's text; nothing for an aborted request. */
export function tell(place, error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) {
    // A fault of this page: logged to the console and shown.
    console.error(error);
  }
  const box = problemBox(error);
  if ([401, 403].includes(error.status)) box.append(keyForm(again ?? (() => place.replaceChildren())));
  else if (again) box.append(html("button", { type: "button", class: "quiet", onclick: again }, "Try again"));
  place.replaceChildren(box);
}

/** A problem's title and detail, and its type and request id for reports. */
export function problemBox(error) {
  const title = error.title ?? "This page has a fault";
  const small = [error.type, error.requestId ?? error.request_id].filter(Boolean).join(" · ");
  return html(
    "div",
    { class: "problem", role: "alert" },
    html("strong", {}, title),
    html("p", {}, error.detail ?? error.message ?? ""),
    small && html("p", { class: "small" }, small),
  );
}

/** A field for an API key; `again` retries with it. */
function keyForm(again) {
  const field = html("input", { type: "password", name: "key", required: "", autocomplete: "off", spellcheck: "false" });
  const form = html(
    "form",
    { class: "key" },
    html("label", {}, "API key ", field),
    html("button", { type: "submit", class: "quiet" }, "Use this key"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(field.value.trim());
    again();
  });
  return form;
}

/** A hint. */
export function notice(title, detail) {
  return html("div", { class: "notice", role: "status" }, html("strong", {}, title), html("p", {}, detail));
}

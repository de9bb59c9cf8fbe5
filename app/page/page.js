/* The page: the open view, the chosen model, and the state of the connection. */

import { askJson, onReached, Problem } from "./api.js";
import { byId, html } from "./drawing.js";
import { count, whole } from "./format.js";
import { tell } from "./notices.js";
import * as tryView from "./try.js";

const NAMES = ["try", "lens", "live"];

// Loaded when first opened, so that Try starts sooner.
const LATER = { lens: () => import("./lens.js"), live: () => import("./live.js") };

const views = {};
let models = [];
let begun = false;

function open(name) {
  for (const each of NAMES) {
    const chosen = each === name;
    byId(`view-${each}`).hidden = !chosen;
    byId(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${each}`).tabIndex = chosen ? 0 : -1;
    if (!chosen) views[each]?.leave();
  }
  if (name in LATER) enter(name);
}

function addStyles(name) {
  return new Promise((resolve, reject) => {
    const events = { onload: resolve, onerror: reject };
    document.head.append(html("link", { rel: "stylesheet", href: `page/${name}.css`, ...events }));
  });
}

async function enter(name) {
  try {
    if (!(name in views)) {
      const [view] = await Promise.all([LATER[name](), addStyles(name)]);
      if (!(name in views)) view.build(() => byId("model").value);
      views[name] = view;
    }
  } catch {
    const lost = new Problem({ title: "This view did not come", detail: `There is no connection to ${location.host}.` });
    tell(byId(`view-${name}`), lost, () => location.reload());
    return;
  }
  if (!byId(`view-${name}`).hidden) views[name].enter();
}

function openAddressed() {
  const name = location.hash.slice(1);
  open(NAMES.includes(name) ? name : "try");
}

function watchTabs() {
  NAMES.forEach((name, index) => {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => (location.hash = name));
    tab.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: index + 1, ArrowLeft: index - 1 + NAMES.length, Home: 0, End: NAMES.length - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = NAMES[steps[event.key] % NAMES.length];
      byId(`tab-${next}`).focus();
      location.hash = next;
    });
  });
  addEventListener("hashchange", openAddressed);
  openAddressed();
}

function showState(answers) {
  const state = byId("state");
  const text = answers ? "connected" : "not reachable";
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("lost", !answers);
  // It was loaded after the page.
  if (answers && !begun) begin();
}

function chosen() {
  return models.find(({ name }) => name === byId("model").value);
}

function describe() {
  const { dtype, device, backend, parameters, classes, feature_dimensions: dimensions, input_size: side } = chosen();
  const gives = classes > 0 ? `${whole(classes)} classes` : `${whole(dimensions)} features, no classes`;
  byId("model-facts").textContent =
    `${backend}, ${dtype} on ${device} · ${count(parameters)} parameters · ${side}\u00a0px · ${gives}`;
}

function list(found) {
  const select = byId("model");
  const before = select.value;
  models = found;
  select.replaceChildren(...models.map(({ name }) => html("option", {}, name)));
  // Otherwise the first, the server's default.
  if (models.some(({ name }) => name === before)) select.value = before;
  describe();
  return select.value !== before;
}

// Models are loaded and unloaded while the page is open. The next request reports a failure here.
async function listAnew() {
  try {
    if (list((await askJson("v1/models")).json.models)) tryView.choose(chosen());
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
  }
}

async function begin() {
  const select = byId("model");
  let limits;
  begun = true;
  try {
    const { json } = await askJson("v1/models");
    limits = json.limits;
    list(json.models);
  } catch (error) {
    begun = false;
    tell(byId("try-notice"), error, begin);
    return;
  }
  byId("try-notice").replaceChildren();
  select.disabled = false;
  select.addEventListener("focus", listAnew);
  select.addEventListener("change", () => {
    describe();
    tryView.choose(chosen());
  });
  tryView.start(chosen(), limits);
}

onReached(showState);
watchTabs();
begin();

// The page: a text is read as it is typed; a token and a concept are chosen in it, which the rest is about.
import { bring, cardOf, el, results, visible, walkable } from "./cards.js";
import { byId, json, latest, soon } from "./requests.js";
import { startSteering, steerBy, stopWriting, write } from "./steer.js";

const [prompt, tokens] = ["prompt", "tokens"].map(byId);
const state = { about: null, text: "", positions: [], selected: 0, concept: null, strengths: null, names: new Map() };
const known = json("/api/about").then((about) => { state.about = about; }); // one may type and search before it is

// Reading -----------------------------------------------------------------------------------------------------------

const read = latest(byId("reading-error"), async (signal) => {
  byId("count").textContent = "reading …";
  stopWriting();
  try {
    await known;
    const text = prompt.value;
    const positions = await json("/api/read", { text }, signal);
    Object.assign(state, { text, positions, strengths: null });
    state.selected = Math.min(state.selected, positions.length - 1);
    for (const each of positions) for (const one of [...each.predicted, ...(each.labelled ?? [])]) state.names.set(one.concept, one.label);
    showTokens();
    showToken();
    tokens.classList.remove("stale");
    byId("count").textContent = `${positions.length} of ${state.about.context} tokens`;
    write();
    await weigh(signal);
  } catch (error) {
    if (!signal.aborted) {
      tokens.classList.add("stale");
      byId("count").textContent = "";
    }
    throw error;
  }
});

/** Finds how strong the chosen concept is at each token, also where it is not among the mixed, and tints by it. */
async function weigh(signal) {
  const { text, concept } = state;
  if (concept === null || !state.positions.length) return;
  const strengths = await json("/api/strengths", { text, concept }, signal);
  if (text !== state.text || concept !== state.concept) return;
  state.strengths = strengths;
  tint();
}

const mixedAt = (position) => position.predicted.find((each) => each.concept === state.concept);
const strengthAt = (position, place) => state.strengths?.[place] ?? mixedAt(position)?.strength ?? 0;
const isLabel = (position) => position.labelled?.some((each) => each.concept === state.concept) ?? false;

function showTokens() {
  const focused = tokens.contains(document.activeElement);
  tokens.replaceChildren(
    ...state.positions.map((position, place) => {
      const line = position.text.includes("\n");
      return el("span", { role: "option", id: `token-${place}`, class: line ? "token break" : "token", "data-place": place },
        line ? position.text.replaceAll("\n", "↵") + "\n".repeat(position.text.split("\n").length - 1) : position.text);
    }),
  );
  tint();
  select(state.selected, focused);
}

/** Colours tokens by the chosen concept's strength, or else by the information gain. */
function tint() {
  const values = state.positions.map((each, place) => (state.concept === null ? each.gain ?? 0 : Math.max(0, strengthAt(each, place))));
  const most = Math.max(...values.map(Math.abs), 1e-9);
  for (const [place, element] of [...tokens.children].entries()) {
    const position = state.positions[place];
    element.style.setProperty("--share", Math.abs(values[place]) / most);
    element.classList.toggle("negative", values[place] < 0);
    element.classList.toggle("label", state.concept !== null && isLabel(position));
    element.setAttribute("aria-label", `${visible(position.text)}, ${described(position, values[place])}`);
  }
  showLegend(values, most);
}

function described(position, value) {
  if (state.concept === null) return position.gain === null ? "no gain known" : `gain ${value.toFixed(2)} nats`;
  return `strength ${value.toFixed(1)}, ${mixedAt(position) ? "mixed" : "not mixed"}${isLabel(position) ? ", a label here" : ""}`;
}

function showLegend(values, most) {
  const legend = byId("legend");
  if (state.concept === null) {
    legend.replaceChildren("tint: gain from mixing for the next token, up to ", el("b", {}, `${most.toFixed(1)} nats`));
    return;
  }
  const mixed = state.positions.filter(mixedAt).length;
  const labelled = state.positions.filter(isLabel).length;
  legend.replaceChildren(
    "tint: strength of ", el("b", {}, String(state.concept)),
    `, up to ${Math.max(0, ...values).toFixed(1)}, mixed ${mixed ? `at ${mixed}` : "nowhere here"}`,
    state.about.labels ? el("span", {}, "; ", el("span", { class: "underlined" }, "labelled"), ` at ${labelled} `) : " ",
    el("button", { type: "button", class: "plain", click: () => { choose(null); tokens.children[state.selected].focus(); } }, "show gain"),
  );
}

function select(place, focus = false) {
  state.selected = place;
  for (const [number, element] of [...tokens.children].entries()) {
    const chosen = number === place;
    element.setAttribute("aria-selected", chosen);
    element.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) element.focus();
  }
}

function showToken() {
  const position = state.positions[state.selected];
  const panel = byId("token");
  const agreed = new Set((position.labelled ?? []).map((each) => each.concept));
  const most = position.predicted[0]?.strength || 1;
  const row = (each, share, amount) => {
    const button = el("button", { type: "button", class: "concept", "data-concept": each.concept, click: () => choose(each.concept) },
      el("b", {}, String(each.concept)), el("span", { class: "name" }, each.label || "no label"), el("small", {}, amount));
    button.style.setProperty("--share", Math.max(0, share));
    return el("li", { class: agreed.has(each.concept) && position.predicted.some((one) => one.concept === each.concept) ? "agreed" : null }, button);
  };
  const rows = position.predicted.map((each) => row(each, each.strength / most, each.strength.toFixed(1)));
  const best = position.labelled?.[0]?.strength || 1;
  const gain = position.gain === null ? "" : `${position.gain >= 0 ? "+" : "−"}${Math.abs(position.gain).toFixed(2)} nats gained by mixing here`;
  const focused = [...panel.querySelectorAll("button")].indexOf(document.activeElement);
  panel.replaceChildren(...[
    el("h2", {}, el("code", {}, visible(position.text)), el("span", { class: "quiet" }, ` position ${state.selected}`)),
    el("p", { class: "quiet" }, gain),
    el("h3", {}, "Predicted, and mixed"),
    el("ul", { class: "list bars" }, ...rows.slice(0, 6)),
    rows.length > 6 ? el("details", {}, el("summary", {}, `${rows.length - 6} more`), el("ul", { class: "list bars" }, ...rows.slice(6))) : null,
    ...(position.labelled ? [
      el("h3", {}, "Labelled, from the base model", agreed.size ? " (underlined: also mixed)" : ""),
      position.labelled.length
        ? el("ul", { class: "list bars" }, ...position.labelled.map((each) => row(each, each.strength / best, each.strength.toFixed(3))))
        : el("p", { class: "quiet" }, "None: this position has no label."),
    ] : []),
  ].filter(Boolean));
  if (focused >= 0) panel.querySelectorAll("button")[focused]?.focus(); // a text that is read again takes no focus away
  markChosen();
}

function markChosen() {
  for (const button of byId("token").querySelectorAll("[data-concept]")) button.classList.toggle("chosen", Number(button.dataset.concept) === state.concept);
}

// A concept ---------------------------------------------------------------------------------------------------------

const choose = latest(byId("found-count"), async (signal, concept) => {
  Object.assign(state, { concept, strengths: null });
  if (state.positions.length) {
    tint();
    markChosen();
  }
  if (concept === null) return;
  await weigh(signal);
  await known;
  const panel = byId("card");
  const steer = el("button", { type: "button", class: "primary", click: () => steerBy(concept) }, `Steer ${concept}`);
  if (!state.about.atlas) {
    panel.replaceChildren(el("h2", {}, `Concept ${concept}`), steer, el("p", { class: "quiet" }, "What it is about is not known: `dvc repro explain` finds out."));
    return;
  }
  const card = await json(`/api/concepts/${concept}`, undefined, signal);
  state.names.set(concept, card.label);
  const focused = panel.contains(document.activeElement);
  panel.replaceChildren(...cardOf(card, choose, steer));
  if (focused) panel.focus();
  bring(panel);
});

const search = latest(byId("found-count"), async (signal) => {
  const wanted = byId("search").value.trim();
  const found = wanted ? await json(`/api/search?text=${encodeURIComponent(wanted)}`, undefined, signal) : [];
  results(byId("found"), found, choose);
  if (wanted && !found.length) throw new Error("No concept with this label or token.");
  return true;
});

// Events ------------------------------------------------------------------------------------------------------------

const readSoon = soon(read, 400);
prompt.addEventListener("input", () => { tokens.classList.add("stale"); readSoon(); });

tokens.addEventListener("click", (event) => {
  const token = event.target.closest(".token");
  if (!token) return;
  select(Number(token.dataset.place), true);
  showToken();
});

tokens.addEventListener("keydown", (event) => {
  const last = state.positions.length - 1;
  if (event.key === "Enter") {
    byId("token").querySelector("button")?.focus();
    event.preventDefault();
    return;
  }
  const place = { ArrowLeft: state.selected - 1, ArrowRight: state.selected + 1, ArrowUp: lineAway(-1), ArrowDown: lineAway(1), Home: 0, End: last }[event.key];
  if (place === undefined) return;
  event.preventDefault();
  select(Math.max(0, Math.min(last, place)), true);
  showToken();
});

/** The token above or below the selected one. */
function lineAway(direction) {
  const boxes = [...tokens.children].map((each) => each.getBoundingClientRect());
  const here = boxes[state.selected];
  if (!here) return 0;
  const beyond = boxes.map((box, place) => ({ place, far: (box.top - here.top) * direction, aside: Math.abs(box.left - here.left) })).filter((each) => each.far > 2);
  const line = Math.min(...beyond.map((each) => each.far));
  const near = beyond.filter((each) => each.far - line < 2).sort((one, other) => one.aside - other.aside);
  return near[0]?.place ?? state.selected;
}

byId("token").addEventListener("keydown", (event) => {
  if (event.key === "Escape") tokens.children[state.selected].focus();
});

const searchSoon = soon(search, 120);
byId("search").addEventListener("input", searchSoon);
byId("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  searchSoon.cancel(); // or it would end the search that is waited for, and what is listed would be an earlier one's
  if (await search()) byId("found").querySelector("button")?.click();
});
walkable(byId("search"), byId("found"));

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const code = byId(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // not allowed: selected, a key copies it
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

await known;
const { about } = state;
byId("about").textContent = `${about.model}: ${about.concepts.toLocaleString("en")} concepts, ${about.context} tokens of context`
  + (about.atlas ? "" : "; no atlas, so no meanings") + (about.labels ? "" : "; no base model, so no labels");
startSteering(about, state.names, choose);
prompt.value ||= "The function returns a list of";
read();

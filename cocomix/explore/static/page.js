// The page: what is typed is read and continued as it changes; one request of each kind is under way at a time.
import { cardOf, el, percent, results, visible, walkable } from "./cards.js";

const byId = (id) => document.getElementById(id);
const [prompt, tokens, edits] = ["prompt", "tokens", "edits"].map(byId);
const RANGE = 10;
const EDIT = /^(\d+)(?:(x|=)([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)|(~\d+))(@[\d:]+)?$/i;

const state = { about: null, positions: [], selected: 0, concept: null, names: new Map(), edits: [] };

// Requests ----------------------------------------------------------------------------------------------------------

async function ask(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { ...options, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer; is it still running?");
  });
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

const json = async (...request) => (await ask(...request)).json();

/** Runs of one kind: a new one ends the one before, and errors are shown in `place`. */
function latest(place, work) {
  let current = new AbortController();
  return async (...given) => {
    current.abort();
    const { signal } = (current = new AbortController());
    try {
      const done = await work(signal, ...given);
      if (!signal.aborted) place.textContent = "";
      return done;
    } catch (error) {
      if (!signal.aborted) place.textContent = error.message;
    }
  };
}

function soon(work, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds, ...given);
  };
}

// Reading -----------------------------------------------------------------------------------------------------------

const read = latest(byId("reading-error"), async (signal) => {
  byId("count").textContent = "reading …";
  stopWriting();
  try {
    const positions = await json("/api/read", { text: prompt.value }, signal);
    state.positions = positions;
    state.selected = Math.min(state.selected, positions.length - 1);
    for (const each of positions) for (const one of [...each.predicted, ...(each.labelled ?? [])]) state.names.set(one.concept, one.label);
    showTokens();
    showToken();
    tokens.classList.remove("stale");
    byId("count").textContent = `${positions.length} of ${state.about.context} tokens`;
    write({ original: true });
  } catch (error) {
    if (!signal.aborted) {
      tokens.classList.add("stale");
      byId("count").textContent = "";
    }
    throw error;
  }
});

const strengthAt = (position) => position.predicted.find((each) => each.concept === state.concept)?.strength ?? 0;
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
  const values = state.positions.map((each) => (state.concept === null ? each.gain ?? 0 : strengthAt(each)));
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
  return `${value ? `strength ${value.toFixed(1)}` : "not mixed"}${isLabel(position) ? ", a label here" : ""}`;
}

function showLegend(values, most) {
  const legend = byId("legend");
  if (state.concept === null) {
    legend.replaceChildren("tint: what mixing is worth for the next token, up to ", el("b", {}, `${most.toFixed(1)} nats`));
    return;
  }
  const mixed = values.filter(Boolean).length;
  const labelled = state.positions.filter(isLabel).length;
  legend.replaceChildren(
    "tint: strength of ", el("b", {}, String(state.concept)),
    mixed ? `, mixed at ${mixed}, up to ${most.toFixed(1)}` : ", mixed nowhere here",
    state.about.labels ? el("span", {}, "; ", el("span", { class: "underlined" }, "labelled"), ` at ${labelled} `) : " ",
    el("button", { type: "button", class: "plain", click: () => choose(null) }, "show gain"),
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
  panel.replaceChildren(...[
    el("h2", {}, el("code", {}, visible(position.text)), el("span", { class: "quiet" }, ` position ${state.selected}`)),
    el("p", { class: "quiet" }, gain),
    el("h3", {}, "Predicted, and mixed"),
    el("ul", { class: "list bars" }, ...rows.slice(0, 6)),
    rows.length > 6 ? el("details", {}, el("summary", {}, `${rows.length - 6} more`), el("ul", { class: "list bars" }, ...rows.slice(6))) : null,
    ...(position.labelled ? [
      el("h3", {}, "Labelled, from the base model"),
      position.labelled.length
        ? el("ul", { class: "list bars" }, ...position.labelled.map((each) => row(each, each.strength / best, each.strength.toFixed(3))))
        : el("p", { class: "quiet" }, "None: nothing follows, or no active concept adds to the loss."),
    ] : []),
  ].filter(Boolean));
  markChosen();
}

function markChosen() {
  for (const button of byId("token").querySelectorAll("[data-concept]")) button.classList.toggle("chosen", Number(button.dataset.concept) === state.concept);
}

// A concept ---------------------------------------------------------------------------------------------------------

const choose = latest(byId("found-count"), async (signal, concept) => {
  state.concept = concept;
  if (state.positions.length) {
    tint();
    markChosen();
  }
  if (concept === null) return;
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
  panel.scrollTop = 0;
  const { top } = panel.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) panel.scrollIntoView();
});

/** Adds an edit, ready for arrow keys. */
function steerBy(concept) {
  addEdit(`${concept}=5`);
  edits.querySelector(`[data-concept="${concept}"] input`)?.focus();
}

const search = latest(byId("found-count"), async (signal) => {
  const wanted = byId("search").value.trim();
  const found = wanted ? await json(`/api/search?text=${encodeURIComponent(wanted)}`, undefined, signal) : [];
  results(byId("found"), found, choose);
  if (wanted && !found.length) throw new Error("No concept with this label or token.");
});

// Steering ----------------------------------------------------------------------------------------------------------

const written = (edit) => (edit.kind === "~" ? edit.typed : `${edit.concept}${edit.kind}${edit.value}${edit.where}`);

function addEdit(typed) {
  const parts = EDIT.exec(typed.trim());
  if (!parts) {
    byId("steering-error").textContent = `${typed || "nothing"}: write 9=5, 9x2, 9=0 or 3~8, each for some positions with @4: or @4:9 or @4`;
    return false;
  }
  const [, concept, kind, value, , where = ""] = parts;
  if (Number(concept) >= state.about.concepts) {
    byId("steering-error").textContent = `no concept ${concept}; the model has 0 to ${state.about.concepts - 1}`;
    return false;
  }
  const edit = { concept: Number(concept), kind: kind?.toLowerCase() ?? "~", value: Number(value), where, typed: typed.trim() };
  const same = state.edits.findIndex((each) => each.kind !== "~" && edit.kind !== "~" && each.concept === edit.concept && each.where === where);
  if (same < 0) state.edits.push(edit);
  else state.edits[same] = edit;
  showEdits();
  write({});
  return true;
}

function showEdits() {
  edits.replaceChildren(...state.edits.map(editRow));
}

function editRow(edit) {
  const name = state.names.get(edit.concept) || "";
  const changed = () => { number.value = slider.value = edit.value; write({}); };
  const limits = { min: -RANGE, max: RANGE, step: 0.5 };
  const of = `concept ${edit.concept}`;
  const remove = el("button", { type: "button", class: "plain", "aria-label": `Remove the edit of ${of}`, click: () => {
    state.edits = state.edits.filter((each) => each !== edit);
    showEdits();
    byId("edit").focus();
    write({});
  } }, "remove");
  const title = el("button", { type: "button", class: edit.kind === "~" ? "concept whole" : "concept", click: () => choose(edit.concept) },
    el("b", {}, edit.kind === "~" ? edit.typed : `${edit.concept}`), el("span", { class: "name" }, name), edit.where && edit.kind !== "~" ? el("small", {}, edit.where) : null);
  if (edit.kind === "~") return el("li", {}, title, remove);
  const kind = el("select", { "aria-label": `How ${of} is edited`, change: () => { edit.kind = kind.value; write({}); } },
    ...[["=", "strength"], ["x", "times"]].map(([value, text]) => el("option", { value, selected: value === edit.kind }, text)));
  const slider = el("input", { type: "range", ...limits, value: edit.value, "aria-label": `Amount for ${of}`, input: () => { edit.value = Number(slider.value); changed(); } });
  const number = el("input", { type: "number", step: 0.5, value: edit.value, "aria-label": `Exact amount for ${of}`, change: () => { edit.value = Number(number.value); changed(); } });
  slider.value = edit.value;
  return el("li", { "data-concept": edit.concept }, title, kind, slider, number, remove);
}

/** Fills `place` with a continuation as it comes. */
async function stream(place, body, signal) {
  place.textContent = "";
  place.classList.add("busy");
  try {
    const reader = (await ask("/api/continue", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the server stopped in the middle");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map(JSON.parse)) {
        if (line.error) throw new Error(line.error);
        if (line.done) return;
        place.append(line.text);
      }
    }
  } finally {
    place.classList.remove("busy");
  }
}

let originalOf = "";
let stopped = new AbortController();

function stopWriting() {
  stopped.abort();
}

function settings() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return { text: prompt.value, tokens: number("new-tokens"), temperature: number("temperature"), seed: number("seed") };
}

/** The original, if what it depends on has changed, then the steered continuation. */
const writeNow = latest(byId("steering-error"), async (signal) => {
  if (!state.about.mixes) throw new Error("this model mixes nothing, so edits change nothing");
  const [original, steered, status] = ["original", "steered", "writing"].map(byId);
  const asked = settings();
  const body = { ...asked, edits: state.edits.map(written), before_selection: byId("before-selection").checked };
  stopped.abort();
  stopped = new AbortController();
  const either = AbortSignal.any([signal, stopped.signal]);
  byId("stop").hidden = false;
  status.textContent = "writing …";
  try {
    const calls = await json("/api/calls", body, either);
    for (const name of ["python", "shell"]) byId(name).textContent = calls[name];
    if (originalOf !== JSON.stringify(asked)) {
      originalOf = "";
      steered.textContent = "";
      await stream(original, asked, either);
      originalOf = JSON.stringify(asked);
    }
    if (state.edits.length) {
      await stream(steered, body, either);
      status.textContent = compare(original.textContent, steered);
    } else {
      steered.replaceChildren(el("span", { class: "quiet" }, "No edits yet. Choose a concept, then Steer; or type an edit above."));
      status.textContent = "";
    }
  } catch (error) {
    if (!signal.aborted) status.textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") throw error;
  } finally {
    if (!signal.aborted) byId("stop").hidden = true;
  }
});

const writeSoon = soon(writeNow, 150);

/** Writes again shortly: sliders move in many small steps. */
function write({ original = false }) {
  if (original) originalOf = "";
  writeSoon();
}

/** Underlines what differs from the original; says how much is the same. */
function compare(original, place) {
  const text = place.textContent;
  let same = 0;
  while (same < text.length && text[same] === original[same]) same++;
  if (same === text.length && same === original.length) return "The edits change nothing here.";
  place.replaceChildren(text.slice(0, same), el("span", { class: "differs" }, text.slice(same)));
  return same ? `The same for ${same} characters, then different.` : "Different from the first token.";
}

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

byId("search").addEventListener("input", soon(search, 120));
byId("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  await search();
  byId("found").querySelector("button")?.click();
});
walkable(byId("search"), byId("found"));

byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  if (addEdit(byId("edit").value)) byId("edit").value = "";
});
byId("stop").addEventListener("click", stopWriting);
for (const id of ["new-tokens", "temperature", "seed", "before-selection"]) byId(id).addEventListener("change", () => write({}));

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

state.about = await json("/api/about");
const { about } = state;
byId("about").textContent = `${about.model}: ${about.concepts.toLocaleString("en")} concepts, ${about.context} tokens of context`
  + (about.atlas ? "" : "; no atlas, so no meanings") + (about.labels ? "" : "; no base model, so no labels");
prompt.value ||= "The function returns a list of";
read();

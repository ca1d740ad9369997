// Edits, and the continuation that they change beside the original.
import { el } from "./cards.js";
import { ask, byId, json, latest, soon } from "./requests.js";

const RANGE = 25;
/** What can be edited: the headings of its continuations, and what a strength is. */
const WRITERS = {
  model: { names: ["Original", "Steered"], unit: "a strength is a logit" },
  base: { names: ["Base model", "Base model, steered"], unit: "a strength is an activation" },
};
const SLIDING = /^(\d+)(x|=)([^@]+)(@.*)?$/;

let page = null;
let given = [];

/** Sets the section up for the page: what it is `about`, the `names` of concepts, and how to `choose` one. */
export function startSteering(about, names, choose) {
  page = { about, names, choose };
  byId("add").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await add(byId("edit").value.trim())) byId("edit").value = "";
  });
  byId("stop").addEventListener("click", stopWriting);
  byId("new-tokens").value ||= about.new_tokens;
  for (const id of ["new-tokens", "temperature", "seed", "before-selection"]) byId(id).addEventListener("change", write);
  byId("choice").hidden = !about.labels; // without them there is no base model either
  byId("of").addEventListener("change", () => { showWriter(); write(); });
  showWriter();
}

const isBase = () => byId("of").value === "base";

function showWriter() {
  const { names, unit } = WRITERS[byId("of").value];
  byId("unit").textContent = unit;
  for (const [place, name] of names.entries()) byId(["original-name", "steered-name"][place]).textContent = name;
  byId("before-selection").disabled = isBase(); // latents are edited as they are
}

const written = (edit) => (edit.typed ?? `${edit.concept}${edit.kind}${edit.value}${edit.where}`);

/** Adds an edit as typed, in place of one of the same concept and positions; whether it is one. */
const add = latest(byId("steering-error"), async (signal, typed) => {
  await json("/api/calls", { text: "", edits: [typed] }, signal); // the server knows what can be written
  const [, concept, kind, value, where = ""] = SLIDING.exec(typed) ?? [];
  const edit = kind ? { concept: Number(concept), kind, value: Number(value), where } : { concept: parseInt(typed, 10), typed };
  const same = given.findIndex((each) => each.kind && kind && each.concept === edit.concept && each.where === where);
  if (same < 0) given.push(edit);
  else given[same] = edit;
  showEdits();
  write();
  return true;
});

function showEdits() {
  byId("edits").replaceChildren(...given.map(editRow));
}

function editRow(edit) {
  const of = `concept ${edit.concept}`;
  const button = (content, attributes) => el("button", { type: "button", ...attributes }, ...content);
  const remove = button(["remove"], { class: "plain", "aria-label": `Remove the edit of ${of}`, click: () => {
    given = given.filter((each) => each !== edit);
    showEdits();
    byId("edit").focus();
    write();
  } });
  const open = { click: () => page.choose(edit.concept) };
  if (edit.typed) return el("li", {}, button([el("b", {}, edit.typed)], { class: "concept whole", ...open }), remove);
  const name = [el("b", {}, String(edit.concept)), el("span", { class: "name" }, page.names.get(edit.concept) || ""), el("small", {}, edit.where)];
  const change = (changes) => {
    Object.assign(edit, changes);
    number.value = slider.value = edit.value;
    write();
  };
  const kind = el("select", { "aria-label": `How ${of} is edited`, change: () => change({ kind: kind.value }) },
    el("option", { value: "=" }, "strength"), el("option", { value: "x" }, "times"));
  const slider = el("input", { type: "range", min: -RANGE, max: RANGE, step: 0.5, "aria-label": `Amount for ${of}`, input: () => change({ value: Number(slider.value) }) });
  const number = el("input", { type: "number", step: "any", "aria-label": `Exact amount for ${of}`, change: () => change({ value: Number(number.value) }) });
  kind.value = edit.kind;
  number.value = slider.value = edit.value;
  return el("li", { "data-concept": edit.concept }, button(name, { class: "concept", ...open }), kind, slider, number, remove);
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

export function stopWriting() {
  stopped.abort();
}

function settings() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return { text: byId("prompt").value, tokens: number("new-tokens"), temperature: number("temperature"), seed: number("seed"), base: isBase() };
}

/** The original, if what it depends on has changed, then the steered continuation. */
const writeNow = latest(byId("steering-error"), async (signal) => {
  if (!page.about.mixes && !isBase()) throw new Error("this model mixes nothing, so edits change nothing");
  const [original, steered, status] = ["original", "steered", "writing"].map(byId);
  const asked = settings();
  const body = { ...asked, edits: given.map(written), before_selection: byId("before-selection").checked && !isBase() };
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
    if (given.length) {
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

/** Writes shortly what has changed: sliders move in many small steps. */
export const write = soon(writeNow, 150);

/** Underlines what differs from the original; says how much is the same. */
function compare(original, place) {
  const text = place.textContent;
  let same = 0;
  while (same < text.length && text[same] === original[same]) same++;
  if (same === text.length && same === original.length) return "The edits change nothing here; larger ones may.";
  place.replaceChildren(text.slice(0, same), el("span", { class: "differs" }, text.slice(same)));
  return same ? `The same for ${same} characters, then different.` : "Different from the first token.";
}

/** Adds an edit, ready for arrow keys. */
export async function steerBy(concept) {
  await add(`${concept}=5`);
  byId("edits").querySelector(`[data-concept="${concept}"] input`)?.focus();
}

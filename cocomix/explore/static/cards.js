// What the page and the exported atlas share. Text of a corpus is only ever put in as text, never as markup.

const SHOWN = 6; // contexts, before one asks for more

/** An element; attributes that are functions are listeners, and children that are not elements become text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

/** A token with its spaces and line ends to be seen. */
export const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→");

export const percent = (share) => `${(100 * share).toLocaleString("en", { maximumSignificantDigits: 2 })}%`;

/** Scrolls to a panel that would not be noticed where it is. */
export function bring(panel) {
  panel.scrollTop = 0;
  const { top } = panel.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) panel.scrollIntoView();
}

/** A list of the concepts that a search found, which arrow keys walk through. */
export function results(list, found, open) {
  list.replaceChildren(
    ...found.map((each) =>
      el("li", {}, el("button", { type: "button", class: "concept", click: () => open(each.concept) },
        el("b", {}, String(each.concept)), el("span", { class: "name" }, each.label || "no label"), el("small", {}, each.why)))),
  );
}

/** Up and down between the field and the results below it. */
export function walkable(field, list) {
  field.form.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const places = [field, ...list.querySelectorAll("button")];
    const place = places[places.indexOf(document.activeElement) + step];
    if (!place) return;
    event.preventDefault();
    place.focus();
  });
}

function tokenChip(token, note, title) {
  return el("li", { title }, el("code", {}, visible(token.text)), el("small", {}, note));
}

function contextLine(context, strongest, note = context.strength.toFixed(2)) {
  const tokens = context.shown.map((token) => {
    const text = token.text.replaceAll("\n", "↵ ");
    if (!token.strength) return text;
    const mark = el("mark", { title: token.strength.toFixed(2) }, text);
    mark.style.setProperty("--share", Math.min(1, token.strength / strongest));
    return mark;
  });
  return el("li", {}, el("p", { class: "prose" }, ...tokens), el("small", {}, note));
}

function block(title, ...content) {
  return el("section", {}, el("h3", {}, title), ...content);
}

/** What the language model makes of a concept: nothing where that is not known. */
function predictedBlocks(predicted) {
  if (!predicted) return [];
  const { positions, predictions, right, labelled, promotes, contexts } = predicted;
  const title = "Predicted by the language model";
  if (!predictions) return [block(title, el("p", { class: "quiet" }, `at none of ${positions.toLocaleString("en")} positions`))];
  const points = (change) => `+${(100 * change).toLocaleString("en", { maximumSignificantDigits: 2 })}`;
  const chips = promotes.map((each) => tokenChip(each, points(each.change), "percentage points that the token becomes likelier where the concept is predicted, when its strength is doubled"));
  const lines = contexts.map((each) => contextLine(each, contexts[0].strength, `${each.strength.toFixed(2)} ${each.right ? "right" : "wrong"}`));
  return [
    block(title,
      el("p", { class: "quiet" }, `at ${percent(predictions / positions)} of positions, ${percent(right / predictions)} of them right (a label at ${percent(labelled / positions)}); doubled there, it makes likelier, by percentage points:`),
      el("ul", { class: "chips" }, ...chips)),
    el("details", {}, el("summary", {}, "Where it is predicted most strongly"), el("ul", { class: "contexts" }, ...lines)),
  ];
}

const TERMS = {
  "at, after, before, near": "in a label, tokens that tell its firings from other positions: where it fires, just before, just after, some tokens earlier",
  "AUC": "how often the label alone ranks a held-out firing above another position; 0.5 is chance",
  "Fires on": "tokens, with their share of its firings",
  "Promotes": "tokens, with what its direction alone adds to their logits",
  "Where it fires": "text around its firings, with their strength; the tint of a token is the strength there",
  "Nearest": "concepts, with the cosine of the two directions",
};

const explanation = () => el("details", {}, el("summary", {}, "How to read this card"),
  el("ul", { class: "quiet" }, ...Object.entries(TERMS).map(([term, meaning]) => el("li", {}, el("b", {}, term), `: ${meaning}`))));

/** The card of a concept: `open` is told of a near concept that is chosen, `actions` are elements for its head. */
export function cardOf(card, open, ...actions) {
  if (!card.firings) {
    const nowhere = el("p", {}, "It fired nowhere in the text that the atlas was made of.");
    return [el("h2", {}, `Concept ${card.concept}`), ...actions, nowhere, ...predictedBlocks(card.predicted)];
  }
  const trust = card.auc === null ? "label not scored" : `label tells it apart with AUC ${card.auc.toFixed(2)} (${card.held_out} held-out firings)`;
  const strongest = card.max_strength;
  const list = (contexts) => el("ul", { class: "contexts" }, ...contexts.map((each) => contextLine(each, strongest)));
  const top = card.contexts.filter((each) => each.kind === "top");
  const spread = card.contexts.filter((each) => each.kind === "quantile");
  return [
    el("h2", {}, el("span", { class: "number" }, String(card.concept)), card.label),
    el("p", { class: "quiet" }, `fires at ${percent(card.rate)} of positions, at most ${strongest.toFixed(2)} strong; ${trust}`),
    ...actions,
    block("Fires on", el("ul", { class: "chips" },
      ...card.fires_on.map((each) => tokenChip(each, percent(each.share), `${percent(each.share)} of its firings, ${each.lift.toFixed(1)} times the token's share of the text`)))),
    block("Promotes", el("ul", { class: "chips" },
      ...card.promotes.map((each) => tokenChip(each, each.logit.toFixed(2), "what its direction adds to the token's logit")))),
    block("Where it fires most", list(top.slice(0, SHOWN))),
    top.length > SHOWN ? el("details", {}, el("summary", {}, `${top.length - SHOWN} more`), list(top.slice(SHOWN))) : null,
    spread.length ? el("details", {}, el("summary", {}, "Where it fires, from strong to weak"), list(spread)) : null,
    ...predictedBlocks(card.predicted),
    block("Nearest", el("ul", { class: "list" },
      ...card.nearest.map((each) => el("li", {}, el("button", { type: "button", class: "concept", click: () => open(each.concept) },
        el("b", {}, String(each.concept)), el("span", { class: "name" }, each.label || "no label"), el("small", {}, each.cosine.toFixed(2))))))),
    explanation(),
  ].filter(Boolean);
}


// The exported atlas. It follows cards.js in one script: a page from disk may not import.

const LIMIT = 100;
const [field, found, count, card] = ["search", "found", "found-count", "card"].map((id) => document.getElementById(id));
const { parts, group } = document.querySelector("main").dataset;

async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed), (each) => each.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
}

const column = (id) => unpacked(document.getElementById(id).textContent);
const words = async (id) => (await column(id)).json();
const numbers = async (id, Kind) => new Kind(await (await column(id)).arrayBuffer());

// One row of numbers per concept; -1 is padding.
const [labels, texts, firesOn, shares, promotes] = await Promise.all([
  words("label"), words("text"), numbers("fires_on", Int32Array), numbers("fires_on_share", Float32Array), numbers("promotes", Int32Array),
]);
const [lowerLabels, lowerTexts] = [labels.map((each) => each.toLowerCase()), texts.map((each) => each.trim().toLowerCase())];

/** Calls `use` with the concept, the place in its row and the place in the column of each token that `is` wanted. */
function forEach(tokens, is, use) {
  const width = tokens.length / labels.length;
  for (let at = 0; at < tokens.length; at++) {
    if (tokens[at] >= 0 && is[tokens[at]]) use(Math.floor(at / width), at % width, at);
  }
}

/** How many concepts are found, and the first: that of this number, then those of `Atlas.search`, best first.
 * Without anything wanted, all are, in order. */
function search(typed) {
  const wanted = typed.trim().toLowerCase();
  if (!wanted) return { number: labels.length, concepts: [...labels.keys()].slice(0, LIMIT), why: () => "" };
  const is = new Uint8Array(texts.length);
  for (const [token, text] of lowerTexts.entries()) is[token] = text === wanted;
  const [label, on, promoted] = [0, 1, 2].map(() => new Float64Array(labels.length));
  for (const [concept, text] of lowerLabels.entries()) label[concept] = text.includes(wanted);
  forEach(firesOn, is, (concept, _, at) => { on[concept] += shares[at]; });
  forEach(promotes, is, (concept, place) => { promoted[concept] = Math.max(promoted[concept], 0.5 / (1 + place)); });
  const scores = label.map((each, concept) => each + on[concept] + promoted[concept]);
  const typedNumber = /^\d+$/.test(wanted) && Number(wanted) < labels.length ? [Number(wanted)] : [];
  const others = [...labels.keys()].filter((concept) => scores[concept] && concept !== typedNumber[0]);
  // Only the best are sorted by a function, which is slow.
  const least = Float64Array.from(others, (concept) => scores[concept]).sort().at(-LIMIT) ?? 0;
  const best = others.filter((concept) => scores[concept] >= least).sort((one, other) => scores[other] - scores[one]);
  const why = (concept) => (concept === typedNumber[0] || label[concept] ? "label" : on[concept] ? "fires on" : "promotes");
  return { number: typedNumber.length + others.length, concepts: [...typedNumber, ...best].slice(0, LIMIT), why };
}

function show() {
  const { number, concepts, why } = search(field.value);
  results(found, concepts.map((concept) => ({ concept, label: labels[concept], why: why(concept) })), go);
  count.textContent = number > LIMIT ? `${number} concepts, of which the first ${LIMIT}` : `${number} ${number === 1 ? "concept" : "concepts"}`;
}

const go = (concept) => { location.hash = concept; };

const loaded = new Map();
const arrived = new Map();

/** Called by the script of a part: scripts are the only files that a page from disk may read. */
globalThis.part = (number, packed) => arrived.get(number)(unpacked(packed).then((each) => each.json()));

/** The rows of the concepts in a part. */
function rowsOf(number) {
  if (!loaded.has(number)) {
    loaded.set(number, new Promise((resolve, reject) => {
      arrived.set(number, resolve);
      const src = `${parts}/${number}.js`;
      const error = () => {
        loaded.delete(number);
        reject(new Error(`${decodeURIComponent(src)} cannot be read; the folder belongs beside this page`));
      };
      document.head.append(el("script", { src, error }));
    }));
  }
  return loaded.get(number);
}

/** A row as `cardOf` takes it: with the texts of its tokens, and the labels of its neighbours. */
function filled(row) {
  return {
    ...row,
    fires_on: row.fires_on.map((token, at) => ({ text: texts[token], share: row.fires_on_share[at], lift: row.fires_on_lift[at] })),
    promotes: row.promotes.map((token, at) => ({ text: texts[token], logit: row.promotes_logit[at] })),
    nearest: row.nearest.map((concept, at) => ({ concept, label: labels[concept], cosine: row.nearest_cosine[at] })),
    contexts: row.contexts.map((each) => ({ ...each, shown: each.tokens.map((token, at) => ({ text: texts[token], strength: each.strengths[at] })) })),
  };
}

async function open() {
  const concept = Number(location.hash.slice(1));
  if (!Number.isInteger(concept) || concept < 0 || concept >= labels.length) return;
  const content = await rowsOf(Math.floor(concept / group)).then(
    (rows) => cardOf(filled(rows[concept % group]), go),
    (error) => [el("p", { class: "error" }, error.message)],
  );
  if (Number(location.hash.slice(1)) !== concept) return;
  card.replaceChildren(...content);
  document.title = `Concept ${concept}`;
}

document.getElementById("about").textContent = `${labels.length.toLocaleString("en")} concepts: where each fires, and what it promotes`;
field.addEventListener("input", show);
field.form.addEventListener("submit", (event) => { event.preventDefault(); found.querySelector("button")?.click(); });
walkable(field, found);
addEventListener("hashchange", async () => { await open(); bring(card); });
show();
if (!location.hash) history.replaceState(null, "", "#0");
open();

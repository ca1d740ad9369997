
// The exported atlas. It follows cards.js in one script: a page from disk may not import.

const LIMIT = 200;
const [field, found, count, card] = ["search", "found", "found-count", "card"].map((id) => document.getElementById(id));
const packed = document.getElementById("index");
const group = Number(packed.dataset.group);

async function unpacked(element) {
  const bytes = Uint8Array.from(atob(element.textContent), (each) => each.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

const concepts = await unpacked(packed);

/** The concept of this number, then those of `Atlas.search`; without anything wanted all concepts, in order. */
function search(typed) {
  const wanted = typed.trim().toLowerCase();
  if (!wanted) return concepts.map(({ label }, concept) => ({ concept, label, why: "" }));
  const number = /^\d+$/.test(wanted) && Number(wanted) < concepts.length ? [{ concept: Number(wanted), label: concepts[Number(wanted)].label, why: "label" }] : [];
  const is = (text) => text.trim().toLowerCase() === wanted;
  const scored = [];
  for (const [concept, { label, fires_on, promotes }] of concepts.entries()) {
    const place = promotes.findIndex(is);
    const scores = {
      label: Number(label.toLowerCase().includes(wanted)),
      "fires on": fires_on.reduce((sum, [text, share]) => sum + (is(text) ? share : 0), 0),
      promotes: place < 0 ? 0 : 0.5 / (1 + place),
    };
    const score = scores.label + scores["fires on"] + scores.promotes;
    if (score) scored.push({ concept, label, score, why: Object.keys(scores).find((why) => scores[why]) });
  }
  return [...number, ...scored.sort((one, other) => other.score - one.score)];
}

function show() {
  const all = search(field.value);
  results(found, all.slice(0, LIMIT), go);
  count.textContent = all.length > LIMIT ? `${all.length} concepts, of which the first ${LIMIT}` : `${all.length} ${all.length === 1 ? "concept" : "concepts"}`;
}

const go = (concept) => { location.hash = concept; };

async function open() {
  const concept = Number(location.hash.slice(1));
  if (!Number.isInteger(concept) || concept < 0 || concept >= concepts.length) return;
  const cards = await unpacked(document.getElementsByClassName("group")[Math.floor(concept / group)]);
  if (Number(location.hash.slice(1)) !== concept) return;
  card.replaceChildren(...cardOf(cards[concept % group], go));
  document.title = `Concept ${concept}`;
}

document.getElementById("about").textContent = `${concepts.length.toLocaleString("en")} concepts: where each fires, and what it promotes`;
field.addEventListener("input", show);
field.form.addEventListener("submit", (event) => { event.preventDefault(); found.querySelector("button")?.click(); });
walkable(field, found);
addEventListener("hashchange", async () => { await open(); bring(card); });
show();
if (!location.hash) history.replaceState(null, "", "#0");
open();

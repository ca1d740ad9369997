"""The atlas of 32,768 concepts and 50,257 tokens: its scores, its page and its search, compared with plain loops.

scores_s        CPU seconds of scoring all labels on held-out text
scores          CPU seconds of a loop over the concepts that compares all pairs of contexts, divided by `scores_s`
export_s        CPU seconds of writing the page and its parts
export          CPU seconds of a loop that makes the card of each concept and compresses it, divided by `export_s`
search_ms       CPU milliseconds of a search in Python
search          CPU milliseconds of a loop over the concepts, divided by `search_ms`
page_mb         megabytes of the page
part_mb         mean megabytes of its parts, of which one is read for a card
page_search_ms  CPU milliseconds of a search in the page with the layout of its results; left out without a Chromium

The loop's times are those of `SAMPLE` concepts, multiplied. Searches are the slowest of `WANTED`. The tables are
random: tokens are as frequent as by Zipf's law, and a concept fires at a twelfth of the tokens around its firings.
"""

import gzip
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import medians, report, set_up
from cocomix.explain.atlas import (
    CONCEPTS,
    CONCEPTS_SCHEMA,
    CONTEXTS,
    CONTEXTS_SCHEMA,
    VOCABULARY,
    VOCABULARY_SCHEMA,
    Atlas,
    write_table,
)
from cocomix.explain.build import Scores, cues_at_places, held_out_scores
from cocomix.explain.cues import PLACES, Cues, label_of
from cocomix.explain.detection import Detection, detection
from cocomix.explain.firings import Firings, ScanResult
from cocomix.explain.lens import Best
from cocomix.explain.scan import BACKGROUND
from cocomix.explain.search import Found, Why
from cocomix.explain.tables import Chosen, concepts_table, contexts_tables, tokens_fired_on, vocabulary_table
from cocomix.explore.export import parts_of, write_page
from cocomix.explore.session import LISTED
from cocomix.params import ExplainParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.as_json import plain
from cocomix.tokens.windows import Tokens

SAMPLE = 64
WANTED = ["the", "a", "abaaa", "31"]
"""Words to search; `a` is in most labels, `abaaa` in few, `31` in none."""
COLUMNS = ["label", "fires_on", "fires_on_share", "promotes"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TYPE = """(wanted) => {
  const field = document.getElementById("search");
  field.value = wanted;
  field.dispatchEvent(new Event("input"));
  document.body.getBoundingClientRect();
}"""
"""A search and the layout of its results."""
PARAMS = ExplainParams(
    tokens=1,
    held_out_tokens=1,
    contexts=10,
    quantiles=10,
    before=16,
    after=8,
    sample=64,
    shown=10,
    label_tokens=5,
    held_out=64,
    shard_tokens=1,
)


def random_tokens(folder: Path, vocab: int, windows: int, context: int) -> Tokens:
    """The same windows in both splits; the frequencies of tokens follow Zipf's law."""
    shares = 1 / np.arange(1, vocab + 1)
    ids = np.random.default_rng(0).choice(vocab, (windows, context), p=shares / shares.sum()).astype(np.uint16)
    with Work("tokenize", folder, {}, {}) as work:
        for split in ("train", "validation"):
            with work.write(f"{split}.npy") as pending:
                pending.rows = windows
                np.save(pending.path, ids)
        work.finish({"context": context, "vocab_size": vocab, "eos_id": 0, "origin": {"source": "files"}})
        work.publish()
    return Tokens(folder)


def words(count: int) -> list[str]:
    """`the`, and further words of five letters, each after a space."""
    letters = [[chr(97 + token // 26**place % 26) for place in range(5)] for token in range(1, count)]
    return [" the", *(f" {''.join(each)}" for each in letters)]


class Dictionary(NamedTuple):
    """What the stage has found, at random."""

    tokens: Tokens
    cues: Cues
    seen: ScanResult

    @classmethod
    def random(cls, concepts: int, tokens: Tokens) -> "Dictionary":
        shape = torch.Size((concepts, PARAMS.label_tokens))
        ids = torch.from_numpy(tokens.windows("train").astype(np.int64)).flatten()
        numbers = torch.randint(len(PLACES), shape) * tokens.vocab_size + ids[: shape.numel()].view(shape)
        sample = _firings(concepts, PARAMS.sample, tokens)
        background = torch.randint(len(ids), (BACKGROUND,))
        return cls(
            tokens,
            Cues(numbers, torch.rand(shape)),
            ScanResult(
                counts=torch.randint(1, 10**6, (concepts,)),
                sums=torch.rand(concepts, dtype=torch.float64),
                tokens=ids.bincount(minlength=tokens.vocab_size),
                strongest=_with_surroundings(_firings(concepts, 2 * PARAMS.contexts, tokens), tokens.context),
                pool=sample,
                sample=sample,
                background=background,
                background_fires=torch.rand(BACKGROUND, concepts) < 0.001,
            ),
        )


def _firings(concepts: int, each: int, tokens: Tokens) -> Firings:
    """As many random firings of each concept."""
    places = torch.randint(tokens.windows("train").size, (concepts * each,))
    return Firings(
        torch.arange(concepts).repeat_interleave(each), places, torch.rand(len(places)), torch.empty(len(places), 0)
    )


def _with_surroundings(some: Firings, context: int) -> Firings:
    around = torch.rand(len(some.places), PARAMS.before + 1 + PARAMS.after)
    around[around > 1 / 12] = 0
    around[:, PARAMS.before] = some.strengths
    position = some.places[:, None] % context + torch.arange(-PARAMS.before, PARAMS.after + 1)
    return some._replace(around=around.masked_fill((position < 0) | (position >= context), torch.nan))


def scores(found: Dictionary) -> Scores:
    return held_out_scores(found.cues, found.seen, found.tokens, PARAMS)


def auc_by_loop(found: Dictionary, concepts: int) -> list[float]:
    """The AUC of the first concepts' labels, one by one and by all pairs of contexts."""
    cues_at = partial(cues_at_places, found.tokens, "validation", PARAMS.before)
    sample, background, fires = found.seen.sample, cues_at(found.seen.background), found.seen.background_fires
    every = []
    for concept in range(concepts):
        places = sample.places[sample.concepts == concept]
        yes = found.cues.score(torch.full_like(places, concept), cues_at(places))
        no = found.cues.score(torch.full((len(background),), concept), background)[~fires[:, concept]]
        every.append(float(((yes[:, None] > no) + 0.5 * (yes[:, None] == no)).mean()))
    return every


def write_atlas(found: Dictionary, scored: Detection, out: Path) -> Atlas:
    concepts, (tokens, seen) = len(found.cues.numbers), (found.tokens, found.seen)
    texts, many = words(tokens.vocab_size), (concepts, PARAMS.shown)
    ids = torch.from_numpy(tokens.windows("train").astype(np.int64)).flatten()
    table = concepts_table(
        seen,
        tokens_fired_on(seen.sample, ids[seen.sample.places], seen.tokens, concepts, PARAMS.shown),
        [label_of(each, texts) for each in found.cues.numbers.tolist()],
        ["tokens"] * concepts,
        scored,
        Best(torch.randint(tokens.vocab_size, many), torch.rand(many)),
        Best(torch.randint(concepts, many), torch.rand(many)),
    )
    chosen = Chosen(seen.strongest, torch.full((len(seen.strongest.concepts),), torch.nan))
    with Work("explain", out, {}, {}) as work:
        write_table(work, CONCEPTS, [table], CONCEPTS_SCHEMA)
        write_table(work, CONTEXTS, contexts_tables(chosen, tokens, PARAMS, concepts), CONTEXTS_SCHEMA)
        write_table(work, VOCABULARY, [vocabulary_table(texts, seen)], VOCABULARY_SCHEMA)
        work.finish({"concepts": concepts, "context": tokens.context})
        work.publish()
    return Atlas(out)


def search_by_loop(texts: list[str], rows: list[list[Any]], wanted: str) -> list[Found]:
    """The first results of a search that walks through the concepts.

    Args:
        rows: the columns `COLUMNS`.
    """
    tokens = {token for token, each in enumerate(texts) if each.strip().lower() == wanted}
    found: list[tuple[float, Found]] = []
    for concept, (label, on, shares, promoted) in enumerate(zip(*rows, strict=True)):
        places = [place for place, token in enumerate(promoted) if token in tokens]
        scored: dict[Why, float] = {
            "label": float(wanted in label.lower()),
            "fires on": sum(share for token, share in zip(on, shares, strict=True) if token in tokens),
            "promotes": max((0.5 / (1 + place) for place in places), default=0.0),
        }
        if any(scored.values()):
            found.append((sum(scored.values()), Found(concept, label, next(why for why in scored if scored[why]))))
    found.sort(key=lambda each: -each[0])
    return [each for _, each in found[:LISTED]]


def cards_by_loop(atlas: Atlas, concepts: int) -> list[bytes]:
    return [gzip.compress(json.dumps(plain(atlas.concept(each))).encode()) for each in range(concepts)]


def milliseconds_in_page(page: Path) -> dict[str, float]:
    """The slowest search in Chromium, in CPU time of the page's thread; empty without one."""
    if CHROMIUM is None:
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        devtools = opened.context.new_cdp_session(opened)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        opened.goto(page.resolve().as_uri())
        opened.wait_for_selector("#card h2", timeout=120_000)

        def seconds(wanted: str) -> float:
            start = busy()
            opened.evaluate(TYPE, wanted)
            return busy() - start

        def busy() -> float:
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return next(each["value"] for each in metrics if each["name"] == "TaskDuration")

        slowest = max(statistics.median(seconds(wanted) for _ in range(9)) for wanted in WANTED)
        browser.close()
    return {"page_search_ms": 1000 * slowest}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of one run: these take seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(concepts: int, tokens: Tokens, folder: Path) -> Iterator[tuple[str, float]]:
    """The ratios by name; files go to `folder`."""
    found = Dictionary.random(concepts, tokens)
    share = min(SAMPLE, concepts) / concepts
    detected: list[Detection] = []
    yield "scores_s", (ours := cpu_seconds(lambda: detected.append(detection(*scores(found)))))
    yield "scores", cpu_seconds(lambda: auc_by_loop(found, min(SAMPLE, concepts))) / share / ours
    atlas, page = write_atlas(found, detected[0], folder / "atlas"), folder / "atlas.html"
    yield "export_s", (ours := cpu_seconds(lambda: write_page(atlas, page)))
    yield "export", cpu_seconds(lambda: cards_by_loop(atlas, min(SAMPLE, concepts))) / share / ours
    rows = [each.to_pylist() for each in atlas.columns(*COLUMNS).columns]
    works = {"ours": partial(atlas.search, limit=LISTED), "loop": partial(search_by_loop, atlas.texts, rows)}
    taken = [medians({name: partial(work, each) for name, work in works.items()}, 1) for each in WANTED]
    slowest = {name: max(each[name].cpu for each in taken) for name in works}
    yield "search_ms", 1000 * slowest["ours"]
    yield "search", slowest["loop"] / slowest["ours"]
    yield "page_mb", page.stat().st_size / 1e6
    sizes = [each.stat().st_size for each in parts_of(page).iterdir()]
    yield "part_mb", sum(sizes) / len(sizes) / 1e6
    yield from milliseconds_in_page(page).items()


if __name__ == "__main__":
    torch.manual_seed(0)
    set_up()
    with tempfile.TemporaryDirectory() as folder:
        measured = dict(
            ratios(32_768, random_tokens(Path(folder, "tokens"), 50_257, windows=4096, context=256), Path(folder))
        )
    report("explain", measured)

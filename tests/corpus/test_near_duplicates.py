import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cocomix.corpus import near_duplicates, parts
from cocomix.corpus.build import CorpusSummary, build
from cocomix.corpus.near_duplicates import VALUES, repeats, rows_of_band
from cocomix.corpus.runs import run_hashes, word_hashes
from cocomix.corpus.splits import SPLITS
from cocomix.params import CorpusParams, FilesParams

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "ou") for c in ("", "n", "st", "nder", "ly")]


def text_of(seed: int, words: int = 300) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def signatures(texts: list[str]) -> NDArray[np.uint32]:
    return near_duplicates.signatures([word_hashes(text) for text in texts])


def changed(text: str, every: int) -> str:
    words = text.split()
    return " ".join("other" if number % every == every // 2 else word for number, word in enumerate(words))


def jaccard(one: str, other: str) -> float:
    first, second = (
        {tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (one.split(), other.split())
    )
    return len(first & second) / len(first | second)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_equal_runs_of_words_have_equal_hashes_and_others_do_not(words: list[str], length: int) -> None:
    runs = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    hashes = run_hashes(word_hashes(" ".join(words)), length).tolist()
    hashes = hashes if words else []
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


def test_words_do_not_depend_on_case_signs_and_spaces() -> None:
    assert word_hashes("Ein\n Straßen-Fest, 2024!").tolist() == word_hashes("ein straßen fest 2024").tolist()
    assert len(word_hashes("x" * 200)) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("漢字かなラーメン、abc", 9),
        ("한국어 텍스트", 2),
        ("กำลังกินข้าว", 9),
        ("ຂ້ອຍ", 3),
        ("ខ្មែរ", 3),
        ("မြန်မာ", 3),
        ("हिन्दी में", 2),
        ("cafe\N{COMBINING ACUTE ACCENT} noir", 2),
    ],
)
def test_marks_belong_to_their_letters_and_letters_without_spaces_are_words(text: str, words: int) -> None:
    assert len(word_hashes(text)) == words


def test_the_words_of_a_long_text_are_those_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{text_of(0)}... {'x' * 500} {text_of(1)}"
    whole = word_hashes(text).tolist()
    for piece in (1, 7, 100):
        monkeypatch.setattr("cocomix.corpus.runs._PIECE", piece)
        assert word_hashes(text).tolist() == whole


def test_signatures_estimate_the_similarity() -> None:
    one = text_of(0, 2000)
    for every in (400, 100, 40, 20):
        other = changed(one, every)
        first, second = signatures([one, other])
        assert (first == second).mean() == pytest.approx(jaccard(one, other), abs=4 * 0.045)


def test_a_signature_depends_on_its_text_alone() -> None:
    texts = [*(text_of(seed, seed) for seed in range(12)), "", "?!", "..."]
    together = signatures(texts)
    assert together.shape == (len(texts), VALUES)
    for text, each in zip(texts, together, strict=True):
        assert np.array_equal(signatures([text])[0], each)
    assert not np.array_equal(together[-1], together[-2])


@pytest.mark.parametrize("least", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_a_pair_of_the_wanted_similarity(least: float) -> None:
    rows = rows_of_band(least)
    assert 1 - (1 - least**rows) ** (VALUES // rows) >= 0.99
    assert rows == VALUES or 1 - (1 - least ** (rows + 1)) ** (VALUES // (rows + 1)) < 0.99


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_one_document_of_each_cluster_is_kept_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bands")
    clusters = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    owners = np.repeat(np.arange(len(clusters)), clusters)
    generator = np.random.default_rng(len(owners))
    values = generator.integers(0, 2**32, (len(clusters), VALUES), np.uint32)[owners]
    values[np.arange(len(owners)), generator.integers(0, VALUES, len(owners))] = np.arange(len(owners))  # nearly equal
    digests = generator.permutation(len(owners)).astype(np.uint64)
    order = np.array(data.draw(st.permutations(range(len(owners)))))
    kept = order[~repeats(values[order], digests[order], 0.9, folder)]
    smallest = [min(np.flatnonzero(owners == each), key=lambda one: digests[one]) for each in range(len(clusters))]
    assert sorted(kept) == sorted(smallest)
    assert not (folder / "bands.npy").exists()


def test_a_chain_of_similar_documents_is_one_cluster(folder: Path) -> None:
    links = [" ".join([f"word{number}" for number in range(start, start + 400)]) for start in range(0, 200, 10)]
    assert jaccard(links[0], links[1]) > 0.9
    assert jaccard(links[0], links[-1]) < 0.4
    drop = repeats(signatures(links), np.arange(len(links), dtype=np.uint64)[::-1].copy(), 0.8, folder)
    assert np.flatnonzero(~drop).tolist() == [len(links) - 1]


def write(path: str, texts: list[str]) -> None:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def built(out: Path, paths: list[str], near_duplicates: float | None) -> tuple[CorpusSummary, set[str]]:
    out.mkdir()
    params = CorpusParams(
        source="files",
        files=FilesParams(paths=paths),
        validation_share=0.2,
        test_share=0.2,
        near_duplicates=near_duplicates,
    )
    summary = build(params, out)
    assert summary
    return summary, {text for split in SPLITS for text in pq.read_table(out / f"{split}.parquet")["text"].to_pylist()}


def test_planted_near_duplicates_are_dropped_whatever_the_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    monkeypatch.setattr(parts, "PART_BYTES", 40_000)
    texts = [text_of(seed) for seed in range(200)]
    near = [changed(text, 150) for text in texts[:60]]
    far = [changed(text, 6) for text in texts[60:100]]
    assert min(map(jaccard, texts, near)) > 0.9
    assert max(map(jaccard, texts[60:], far)) < 0.5
    everything = [*texts, *near, *far]
    write("a.jsonl", everything)
    random.Random(0).shuffle(everything)
    write("b.jsonl", everything)
    summary, kept = built(folder / "one", ["a.jsonl"], 0.8)
    assert summary.dropped["near-duplicates"] == 60
    assert {*texts[60:], *far} <= kept
    assert all(len({text, other} & kept) == 1 for text, other in zip(texts, near, strict=False))
    again, others = built(folder / "two", ["b.jsonl"], 0.8)
    assert (again.dropped, others) == (summary.dropped, kept)
    assert built(folder / "three", ["a.jsonl"], None)[1] == set(everything)

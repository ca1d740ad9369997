import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.corpus.build import build
from cocomix.corpus.contamination import WORDS, read_benchmarks, write_benchmarks
from cocomix.corpus.runs import word_hashes
from cocomix.params import CorpusParams, FilesParams

VOCABULARY = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "est", "inder", "ouly", "a")]


def words_of(seed: int, count: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def benchmarks_of(folder: Path, **texts: list[str]) -> Path:
    write_benchmarks(texts, path := folder / "benchmarks.npz")
    return path


@settings(deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=40), st.lists(st.sampled_from("ab"), max_size=40))
def test_a_document_is_contaminated_if_it_shares_13_words_in_a_row(
    tmp_path_factory: pytest.TempPathFactory, text: list[str], test: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("benchmarks")
    runs, wanted = ({tuple(each[at : at + 13]) for at in range(len(each) - 12)} for each in (text, test))
    found = read_benchmarks(benchmarks_of(folder, one=[" ".join(test)])).found_in(word_hashes(" ".join(text)))
    assert found == ([0] if runs & wanted else [])


def test_case_and_signs_do_not_hide_a_piece_and_all_its_benchmarks_are_named(folder: Path) -> None:
    piece, other = words_of(1, WORDS), words_of(2, WORDS)
    benchmarks = read_benchmarks(
        benchmarks_of(folder, a=["short", " ".join(piece)], b=[" ".join(other)], c=[" ".join([*other, *piece])], d=[])
    )
    text = f"{' '.join(words_of(3, 50))} {', '.join(piece).upper()}. {' '.join(words_of(4, 50))}"
    assert [benchmarks.names[each] for each in benchmarks.found_in(word_hashes(text))] == ["a", "c"]
    assert benchmarks.found_in(word_hashes(" ".join(piece[:-1]))) == benchmarks.found_in(word_hashes("")) == []


@pytest.mark.parametrize("option", ["count", "drop"])
def test_planted_pieces_are_counted_and_dropped_by_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    tests = [" ".join(words_of(seed, 30)) for seed in range(10)]
    for number in range(100):
        words = words_of(1000 + number, 200)
        if number < 15:
            words[50:50] = tests[number % 10].split()[5:25]
        Path(f"{number}.txt").write_text(" ".join(words))
    params = CorpusParams.model_validate(
        {"source": "files", "files": FilesParams(paths=["*.txt"]), "validation_share": 0.2, "test_share": 0.2}
        | {"decontaminate": option}
    )
    (out := folder / "out").mkdir()
    benchmarks = benchmarks_of(folder, planted=[*tests, "too short"], other=[" ".join(words_of(77, 40))])
    summary = build(params, out, benchmarks)
    assert summary
    assert summary.contaminated == {"planted": (15, 11, 10), "other": (0, 1, 1)}
    dropped = 15 if option == "drop" else 0
    assert sum(size.documents for size in summary.splits.values()) == 100 - dropped
    assert summary.dropped == ({"contaminated documents": 15} if dropped else {})


def test_documents_beyond_the_limit_are_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    test = words_of(0, 20)
    Path("data.jsonl").write_text(
        "".join(json.dumps({"text": " ".join([*words_of(1000 + each, 50), *test])}) + "\n" for each in range(100))
    )
    params = CorpusParams.model_validate(
        {"source": "files", "files": FilesParams(paths=["*.jsonl"]), "validation_share": 0.2, "test_share": 0.2}
        | {"decontaminate": "count", "megabytes": 0.02}
    )
    (out := folder / "out").mkdir()
    summary = build(params, out, benchmarks_of(folder, planted=[" ".join(test)]))
    assert summary
    assert summary.contaminated
    kept = sum(size.documents for size in summary.splits.values())
    assert summary.contaminated["planted"].documents == kept < 100

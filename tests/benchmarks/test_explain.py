from pathlib import Path

import pytest
import torch

from benchmarks.explain import (
    COLUMNS,
    Dictionary,
    auc_by_loop,
    random_tokens,
    ratios,
    scores,
    search_by_loop,
    write_atlas,
)
from cocomix.explain.detection import detection
from cocomix.explore.session import LISTED
from cocomix.tokens.windows import Tokens

CONCEPTS = 40


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return random_tokens(tmp_path / "tokens", 97, windows=64, context=32)


def test_the_loops_that_are_compared_find_the_same(tokens: Tokens, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = Dictionary.random(CONCEPTS, tokens)
    scored = detection(*scores(found))
    assert scored.auc.tolist() == pytest.approx(auc_by_loop(found, CONCEPTS))
    atlas = write_atlas(found, scored, tmp_path / "atlas")
    rows = [each.to_pylist() for each in atlas.columns(*COLUMNS).columns]
    for wanted in ("the", "a", "baaaa"):
        assert atlas.search(wanted, LISTED) == search_by_loop(atlas.texts, rows, wanted)


def test_every_ratio_is_above_zero(tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.explain.CHROMIUM", None)
    measured = dict(ratios(CONCEPTS, tokens, tmp_path))
    assert len(measured) == 8
    assert all(each > 0 for each in measured.values())

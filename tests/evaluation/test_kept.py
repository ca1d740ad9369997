"""Measurements that are stopped in the middle go on, and give the same figures to the last place."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2LMHeadModel

from cocomix.evaluation.concepts import score_concepts
from cocomix.evaluation.downstream_likelihood import Request, log_likelihoods
from cocomix.evaluation.language_model import score_text
from cocomix.evaluation.mixing import score_mixing
from cocomix.evaluation.text import EvaluationText
from cocomix.plumbing import parts
from cocomix.plumbing.progress import Progress
from cocomix.tokens.window_data import WindowData
from tests.evaluation.conftest import CONTEXT, cocomix

Measure = Callable[[Path | None], Any]


@pytest.fixture
def measures(gpt2: GPT2LMHeadModel, text: EvaluationText, data: WindowData) -> dict[str, Measure]:
    requests = [Request(tuple(range(1, 3 + n)), (n, n + 1)) for n in range(1, 7)]
    return {
        "text": lambda kept: asdict(score_text(gpt2, text, 2, "text", kept=kept)),
        "strided text": lambda kept: asdict(score_text(gpt2, text, 2, "text", 5, kept)),
        "concepts": lambda kept: asdict(score_concepts(cocomix(), data, 2, "concepts", kept)),
        "mixing": lambda kept: asdict(score_mixing(cocomix(), data, 100, 2, "mixing", kept)),
        "likelihoods": lambda kept: log_likelihoods(gpt2, requests, CONTEXT, 9, "task", kept),
    }


@pytest.mark.parametrize("name", ["text", "strided text", "concepts", "mixing", "likelihoods"])
def test_a_stopped_measurement_goes_on_to_the_same_figures(
    measures: dict[str, Measure], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    whole, steps = measures[name](None), []

    def stop(_bar: Progress, amount: int) -> None:
        steps.append(amount)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        measures[name](tmp_path / "kept")
    again: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda _, amount: again.append(amount))
    assert measures[name](tmp_path / "kept") == whole
    every: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda _, amount: every.append(amount))
    measures[name](None)
    assert again == every[2:]  # the batch in which it was stopped, and the rest

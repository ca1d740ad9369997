import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from cocomix.evaluation import language_model
from cocomix.evaluation.language_model import score_text, spans, windows_at_once
from cocomix.evaluation.text import EvaluationText
from tests.evaluation.conftest import CONTEXT, cocomix


class OneInFour(nn.Module):
    """Gives the token 3 odds of 1 to 3 against the token 2, and no other token a chance."""

    class config:  # noqa: N801
        vocab_size = 4

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> CausalLMOutput:  # noqa: ARG002
        chances = torch.tensor([0.0, 0.0, 0.75, 0.25])
        return CausalLMOutput(logits=chances.log().expand(*input_ids.shape, 4))


def test_perplexity_and_bits_per_byte_are_those_computed_by_hand() -> None:
    # Predicted are 3 3 2 (the first token of each of the two windows of 3 is not: 2, and 2), then 2.
    text = EvaluationText(
        np.array([[2, 3, 3], [2, 2, 2]], np.uint16), np.array([7]), np.array([0.0, 1.0, 2.0, 4.0]), 0.0, ["a"]
    )
    score = score_text(OneInFour(), text, 8, "hand").whole  # type: ignore[arg-type]
    assert score.perplexity == pytest.approx((4 * 4 * 4 / 3 * 4 / 3) ** (1 / 4))
    assert score.loss == pytest.approx(math.log(score.perplexity))
    assert score.bits_per_byte == pytest.approx((2 + 2 + 2 * math.log2(4 / 3)) / (4 + 4 + 2 + 2))


def by_token(model: PreTrainedModel, text: EvaluationText, stride: int | None) -> dict[int, float]:
    """The plain way: one token at a time, by the place of the token in the text."""
    ids = torch.from_numpy(text.windows.reshape(-1).astype(np.int64))
    losses: dict[int, float] = {}
    start, last = 0, len(ids) - CONTEXT
    while True:
        for place in range(start + 1, start + CONTEXT):
            if place not in losses:
                with torch.no_grad():
                    logits = model(input_ids=ids[None, start:place], use_cache=False).logits[0, -1]
                losses[place] = -float(logits.log_softmax(-1)[ids[place]])
        if start == last:
            return losses
        start = min(start + (stride or CONTEXT), last)


@pytest.mark.parametrize("stride", [None, 1, 4, 5, CONTEXT - 1])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_score_is_that_of_one_token_at_a_time(
    gpt2: GPT2LMHeadModel, text: EvaluationText, stride: int | None, batch_size: int
) -> None:
    expected = by_token(gpt2, text, stride)
    score = score_text(gpt2, text, batch_size, "text", stride)
    assert score.whole.loss == pytest.approx(sum(expected.values()) / len(expected), rel=1e-5)

    ids = text.windows.reshape(-1)
    tokens, size, loss = defaultdict(int), defaultdict(float), defaultdict(float)
    for place, each in expected.items():
        document = int((ids[:place] == 0).sum())
        tokens[document] += 1
        size[document] += ids[place] % 5
        loss[document] += each
    documents = score.documents
    assert documents.document == sorted(tokens)
    assert documents.group == [f"group {each % 3}" for each in documents.document]
    assert documents.tokens == [tokens[each] for each in documents.document]
    assert documents.bytes == [size[each] for each in documents.document]
    assert documents.loss == pytest.approx([loss[each] for each in documents.document], rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"mixing": "add"}, {"predicts": "nothing"}])
def test_the_interleaved_positions_are_no_tokens(text: EvaluationText, changes: dict[str, object]) -> None:
    model = cocomix(**changes)
    expected = by_token(model, text, None)
    assert score_text(model, text, 3, "text").whole.loss == pytest.approx(
        sum(expected.values()) / len(expected), rel=1e-5
    )


def test_a_large_vocabulary_takes_fewer_windows_at_a_time_and_gives_the_same(
    gpt2: GPT2LMHeadModel, text: EvaluationText, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_text(gpt2, text, 64, "text").whole
    rows: list[int] = []
    gpt2.register_forward_hook(lambda _model, _args, output: rows.append(len(output.logits)))
    monkeypatch.setattr(language_model, "most_logits", lambda: 2 * CONTEXT * gpt2.config.vocab_size)
    assert score_text(gpt2, text, 64, "text").whole.loss == pytest.approx(whole.loss)
    assert rows == [2, 2, 2, 1]


@pytest.mark.parametrize("num_concepts", [24, 100])
def test_windows_are_bounded_by_what_has_most_logits_tokens_or_concepts(
    num_concepts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cocomix(num_concepts=num_concepts).config
    monkeypatch.setattr(language_model, "most_logits", lambda: 3 * CONTEXT * max(config.vocab_size, num_concepts))
    assert windows_at_once(64, CONTEXT, config) == 3


def test_a_micro_batch_bounds_the_windows_at_a_time(
    gpt2: GPT2LMHeadModel, text: EvaluationText, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    gpt2.register_forward_hook(lambda _model, _args, output: rows.append(len(output.logits)))
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    score_text(gpt2, text, 64, "text")
    score_text(gpt2, text, 2, "text")
    assert rows == [3, 3, 1, 2, 2, 2, 1]


@given(st.integers(2, 20), st.integers(0, 60), st.data())
def test_sliding_windows_predict_every_token_but_the_first_once_with_enough_before_it(
    context: int, more: int, draw: st.DataObject
) -> None:
    stride = draw.draw(st.integers(1, context - 1))
    tokens = context + more
    predicted: list[int] = []
    for start, seen in zip(*spans(tokens, context, stride), strict=True):
        places = range(start + max(seen, 1), start + context)
        assert all(place - start >= context - stride for place in places) or start == 0
        predicted += places
    assert predicted == list(range(1, tokens))


@given(st.integers(2, 20), st.integers(1, 9))
def test_windows_side_by_side_are_those_of_the_tokens(context: int, windows: int) -> None:
    starts, seen = spans(windows * context, context, None)
    assert starts.tolist() == [window * context for window in range(windows)]
    assert not seen.any()

"""Continue a text reproducibly: the same request gives the same words everywhere."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from cocomix.plumbing.errors import UserError


class Sampling(NamedTuple):
    """How tokens are sampled."""

    tokens: int
    """Maximum new tokens."""
    temperature: float = 0.8
    """0: greedy decoding; otherwise within `TEMPERATURES`."""
    seed: int = 0


TEMPERATURES = (0.01, 10.0)
"""Allowed range: below it, dividing the logits overflows; above it, all tokens are about equally likely."""


def default_tokens(context: int) -> int:
    """Maximum new tokens, if nobody says how many. Half of a short context leaves room for a text.

    Args:
        context: the most tokens that the model reads.
    """
    return min(40, context // 2)


def checked_temperature(temperature: float) -> float:
    """Validate a temperature and return it.

    Raises:
        ValueError: when it is neither 0 nor within `TEMPERATURES`; also for NaN.
    """
    least, most = TEMPERATURES
    if temperature != 0 and not least <= temperature <= most:
        raise ValueError(f"must be 0, or from {least:g} to {most:g}")
    return temperature


def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ids: Tensor, sampling: Sampling, **more: Any
) -> str:
    """The text that `model` generates after the prompt ids [1, seq].

    Args:
        more: further arguments of its `generate`, such as `concept_edits`.

    Raises:
        UserError: when its predictions overflow, after an edit such as 9=1e38.
    """
    torch.manual_seed(sampling.seed)
    drawn = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature else {"do_sample": False}
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.tokens,
        pad_token_id=tokenizer.eos_token_id,
        logits_processor=LogitsProcessorList([_Finite()]),
        **drawn,
        **more,
    )
    text: str = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    return text


class _Finite(LogitsProcessor):
    """Refuses NaN and infinite predictions, which would end the text or raise an error in torch."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        if scores.isnan().any() or scores.isposinf().any():
            raise UserError("the model's predictions overflow with these edits; give smaller strengths")
        return scores

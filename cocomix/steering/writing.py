"""Continuing a text, so that the same request gives the same words wherever it is made."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Sampling(NamedTuple):
    """How tokens are chosen."""

    tokens: int = 40
    """New ones at most."""
    temperature: float = 0.8
    """0: the likeliest token each time."""
    seed: int = 0


def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ids: Tensor, sampling: Sampling, **more: Any
) -> str:
    """What `model` says after the prompt ids [1, seq]; `more` is for its `generate`, such as `concept_edits`."""
    torch.manual_seed(sampling.seed)
    drawn = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature else {"do_sample": False}
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.tokens,
        pad_token_id=tokenizer.eos_token_id,
        **drawn,
        **more,
    )
    text: str = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    return text

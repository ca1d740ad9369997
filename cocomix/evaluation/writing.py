"""What a language model writes after the beginnings of real windows: all models continue the same ones."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cocomix.plumbing.device import device
from cocomix.tokens.spaced import spaced

PROMPTS = 3
PROMPT_TOKENS, NEW_TOKENS = 24, 48
"""Maxima: a prompt takes at most half of a window, and the text ends with the window."""
TEMPERATURE = 0.8
SEED = 0


class Writing(NamedTuple):
    """A prompt of the validation split and how a model continues it, as token ids."""

    prompt: list[int]
    written: list[int]


@torch.no_grad()
def write_on(model: PreTrainedModel, windows: NDArray[np.unsignedinteger]) -> list[Writing]:
    """Continue the beginnings of evenly spaced windows, [windows, context], by sampling with a fixed seed."""
    model.eval().to(device())
    count, context = windows.shape
    length = min(PROMPT_TOKENS, context // 2)
    prompts = torch.from_numpy(windows[spaced(count, PROMPTS), :length].astype(np.int64)).to(device())
    new = min(NEW_TOKENS, context - length)
    torch.manual_seed(SEED)
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
    )
    return [Writing(each[:length], each[length:]) for each in ids.tolist()]

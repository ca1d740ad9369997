"""Attention over whole windows, which have no padding and begin at position 0.

In each forward pass, transformers' models look whether positions begin anew, as in packed documents, and the process
waits for the GPU. torch.compile cannot look: it computes a mask of [batch, 1, context, context], with which no flash
kernel runs. Whole windows need no mask besides the kernel's own causal one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cocomix.modeling import CoCoMixLanguageModel

NAME = "sdpa_whole_windows"

# transformers makes no mask for a name without a mask function.
AttentionInterface.register(NAME, sdpa_attention_forward)


@contextmanager
def whole_windows(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` is run on whole windows only. CoCoMix models, which look at nothing, stay as they are."""
    kind = model.config._attn_implementation
    if kind != "sdpa" or isinstance(model, CoCoMixLanguageModel):
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(kind)

"""Attention in which what reaches a position from other positions is fixed.

The paper's Eq. 1 asks how the loss of the next token alone depends on the concepts of a position, all else being as it
is. In the blocks above, a position acts on its own logits through its query and through its own key and value, never
through another position's. With the keys and values of the others held fixed, nothing crosses from one position to
another, so that one pass answers for all positions of a window at once:

- a backward pass gives, at every position, the gradient of the loss of its own next token alone;
- a forward pass over an edited residual stream gives, at every position, the loss that would follow were that position
  alone edited, where the keys and values of the others come from a pass without the edit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cocomix.base import blocks_of
from cocomix.errors import UserError

NAME = "positions_apart"
AttentionMaskInterface.register(NAME, sdpa_mask)  # masks are looked up by name for all models at once

KeysValues = dict[int, tuple[Tensor, Tensor]]
"""Of each block, by its number: what its positions show to others, both [batch, heads, seq, d_head], detached."""


@contextmanager
def positions_apart(model: PreTrainedModel, others: KeysValues | None = None) -> Iterator[KeysValues]:
    """Inside, each forward pass of `model` takes the other positions' keys and values as constants.

    Args:
        others: these constants, as a pass without edits left them; a batch of 1 stands for any. None: the pass's own.

    Yields:
        The keys and values of the last pass, for a later one's `others`.

    Raises:
        UserError: when a block has an attention of its own kind, which cannot be split so.
    """
    seen: KeysValues = {}

    def attend(
        block: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise UserError(f"attribution.scope: next_token: {type(block).__name__} caps or shifts attention scores")
        number: int = block.layer_idx  # type: ignore[assignment]
        seen[number] = key.detach(), value.detach()
        arguments = (query, key, value, *(others or seen)[number], mask, scaling or query.shape[-1] ** -0.5)
        # Scores of all pairs of positions are computed again in the backward pass, as fused kernels do.
        output = checkpoint(_attention, *arguments, use_reentrant=False, preserve_rng_state=False)
        return output.transpose(1, 2).contiguous(), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attend
    model.set_attn_implementation(NAME)
    try:
        yield seen
    finally:
        model.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS[NAME]
    if len(seen) < len(blocks_of(model)):
        raise UserError(
            f"attribution.scope: next_token needs attention by transformers' AttentionInterface, "
            f"which {type(model).__name__} does not use; sequence is allowed"
        )


@torch.no_grad()
def keys_values(model: PreTrainedModel, ids: Tensor) -> KeysValues:
    """What the positions of some windows, ids [windows, context], show to others, for `positions_apart`."""
    with positions_apart(model) as seen:
        model.base_model(input_ids=ids, use_cache=False)
    return seen


def _attention(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Softmax attention of each `query` to its own `key` and `value`, and to the others' `keys` and `values`.

    Args:
        query: [batch, heads, seq, d_head]; the others may have fewer heads, each shared by as many queries.
        mask: true where a query may look, [batch or 1, 1, seq, seq]; none: at the past.
    """
    heads = query.shape[1] // key.shape[1]
    query, dtype = query.to(value.dtype), value.dtype
    key, value, keys, values = (each.repeat_interleave(heads, 1) for each in (key.to(dtype), value, keys, values))
    if mask is None:
        mask = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = (query @ keys.to(dtype).transpose(-1, -2)).float()
    scores = scores.diagonal_scatter((query * key).sum(-1, dtype=torch.float32), 0, -2, -1)
    weights = (scores * scaling).masked_fill(~mask, -torch.inf).softmax(-1).to(dtype)
    return weights @ values + weights.diagonal(0, -2, -1).unsqueeze(-1) * (value - values)

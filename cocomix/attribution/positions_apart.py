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
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from cocomix.base.hooks import residual_edited
from cocomix.plumbing.errors import UserError

NAME = "positions_apart"

KeysValues = dict[int, tuple[Tensor, Tensor]]
"""Of each block, by its number: what its positions show to others, both [batch, heads, seq, d_head], detached."""


_passes: list[tuple[KeysValues | None, KeysValues]] = []
"""Of each `positions_apart` that is entered: what it was given, and what it yields."""


@contextmanager
def positions_apart(model: PreTrainedModel, others: KeysValues | None = None) -> Iterator[KeysValues]:
    """Inside, each forward pass of `model` takes the other positions' keys and values as constants.

    Of a model that `check_positions_apart` passes.

    Args:
        others: these constants, as a pass without edits left them; a batch of 1 stands for any. None: the pass's own.

    Yields:
        The keys and values of the last pass, for a later one's `others`.
    """
    before, seen = model.config._attn_implementation, KeysValues()
    _passes.append((others, seen))
    model.set_attn_implementation(NAME)
    try:
        yield seen
    finally:
        model.set_attn_implementation(before)
        _passes.pop()


@torch.no_grad()
def check_positions_apart(model: PreTrainedModel, layer: int, ids: Tensor) -> None:
    """Check that after `layer` blocks nothing crosses from one position to another but keys and values.

    Args:
        ids: a window, [1, context].

    Raises:
        UserError: otherwise: when a block has an attention of its own kind, or something beside it.
    """

    def edit(residual: Tensor) -> Tensor:
        first = torch.zeros_like(residual, dtype=torch.bool)
        first[1, 0] = True
        return torch.where(first, -residual, residual)

    with positions_apart(model, keys_values(model, ids)), residual_edited(model, layer, edit):
        plain, edited = model(input_ids=ids.expand(2, -1), use_cache=False).logits.float()
    moved = (edited - plain).norm(dim=1)
    if moved[1:].max() > 1e-3 * moved[0]:
        raise UserError(
            f"attribution.scope: next_token: in {type(model).__name__}, more crosses from one position to another than "
            "keys and values, by transformers' AttentionInterface; allowed: sequence"
        )


@torch.no_grad()
def keys_values(model: PreTrainedModel, ids: Tensor) -> KeysValues:
    """What the positions of some windows, ids [windows, context], show to others, for `positions_apart`."""
    with positions_apart(model) as seen:
        model.base_model(input_ids=ids, use_cache=False)
    return seen


def _attend(
    block: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions."""
    shifted = attention_mask is not None and attention_mask.dtype != torch.bool
    if shifted or options.get("softcap") is not None or options.get("s_aux") is not None:
        kind = type(block).__name__
        raise UserError(f"attribution.scope: next_token: {kind} caps or shifts attention scores; allowed: sequence")
    others, seen = _passes[-1]
    number: int = block.layer_idx  # type: ignore[assignment]
    seen[number] = key.detach(), value.detach()
    arguments = (query, key, value, *(others or seen)[number], attention_mask, scaling or query.shape[-1] ** -0.5)
    # Scores of all pairs of positions are computed again in the backward pass, as fused kernels do.
    output = checkpoint(_attention, *arguments, use_reentrant=False, preserve_rng_state=False)
    return output.transpose(1, 2).contiguous(), None


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


# Looked up by name, for all models at once.
AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

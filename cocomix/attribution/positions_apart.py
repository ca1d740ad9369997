"""Attention in which each position sees the other positions' keys and values as constants.

The paper's Eq. 1 asks how the loss of the next token alone depends on the concepts of a position, with all else fixed.
In the blocks above, a position affects its own logits through its query and through its own key and value, never
through another position's. With the other positions' keys and values fixed, nothing passes from one position to
another, so one pass covers all positions of a window:

- a backward pass gives, at every position, the gradient of its own next-token loss alone;
- a forward pass over an edited residual stream gives, at every position, the loss if that position alone were edited;
  the other positions' keys and values come from a pass without the edit.
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
"""Keys and values of all positions by block number, both [batch, heads, seq, d_head], detached."""


_passes: list[tuple[KeysValues | None, KeysValues]] = []
"""For each `positions_apart` that is entered: its argument `others`, and the keys and values that it yields."""


@contextmanager
def positions_apart(model: PreTrainedModel, others: KeysValues | None = None) -> Iterator[KeysValues]:
    """Inside, each forward pass of `model` takes the other positions' keys and values as constants.

    The model must pass `check_positions_apart`.

    Args:
        others: these constants, from a pass without edits; a batch of 1 is broadcast. None: the pass's own.

    Yields:
        The keys and values of the last pass, for `others` of a later one.
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
    """Check that after `layer` blocks only keys and values pass from one position to another.

    Args:
        ids: a window, [1, context].

    Raises:
        UserError: otherwise: when a block has its own attention code, or mixes positions outside attention.
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
    """The keys and values of some windows, ids [windows, context], for `positions_apart`."""
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
    """An attention function for transformers' AttentionInterface."""
    shifted = attention_mask is not None and attention_mask.dtype != torch.bool
    if shifted or options.get("softcap") is not None or options.get("s_aux") is not None:
        kind = type(block).__name__
        raise UserError(f"attribution.scope: next_token: {kind} caps or shifts attention scores; allowed: sequence")
    others, seen = _passes[-1]
    number: int = block.layer_idx  # type: ignore[assignment]
    seen[number] = key.detach(), value.detach()
    arguments = (query, key, value, *(others or seen)[number], attention_mask, scaling or query.shape[-1] ** -0.5)
    # The backward pass recomputes the scores of all pairs of positions, as fused kernels do.
    output = checkpoint(_attention, *arguments, use_reentrant=False, preserve_rng_state=False)
    return output.transpose(1, 2).contiguous(), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Softmax attention of each `query` to its own `key` and `value`, and to the others' `keys` and `values`.

    Args:
        query: [batch, heads, seq, d_head]; keys and values may have fewer heads (grouped-query attention).
        mask: true where a query may attend, [batch or 1, 1, seq, seq]; None: causal.
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


# Models look attention functions up by name, in registries that all models share.
AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

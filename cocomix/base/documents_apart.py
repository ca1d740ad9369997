"""Forward passes in which tokens attend only within their own document."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.hooks import activations_at
from cocomix.params import Site
from cocomix.plumbing.errors import UserError


def documents_apart(model: PreTrainedModel, documents: Tensor) -> dict[str, Tensor]:
    """Inputs of `model` with which tokens attend only within their own document.

    Args:
        documents: the number of each token's document, [batch, seq].

    Returns:
        `attention_mask` [batch, 1, seq, seq] and `position_ids` [batch, seq], which restart at each document.
    """
    seq = documents.shape[1]
    place = torch.arange(seq, device=documents.device)
    allowed = (documents[:, :, None] == documents[:, None, :]) & (place[:, None] >= place)
    # A document's tokens are contiguous, so a token attends to its predecessors in the document and itself.
    position_ids = allowed.sum(2) - 1
    mask = allowed[:, None]
    if model.config._attn_implementation == "eager":  # adds the mask to the scores
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
    return {"attention_mask": mask, "position_ids": position_ids}


@torch.no_grad()
def check_documents_apart(model: PreTrainedModel, ids: Tensor, sites: Sequence[Site]) -> None:
    """Check that `documents_apart` separates documents and changes nothing else.

    Its mask replaces the model's own, also a sliding window; convolutions and recurrences ignore masks.

    Args:
        ids: a window, [1, seq].

    Raises:
        UserError: otherwise.
    """

    def read(ids: Tensor, **inputs: Tensor) -> Tensor:
        return torch.stack(activations_at(model, ids, sites, **inputs))

    half = ids.shape[1] // 2
    second = torch.arange(ids.shape[1], device=ids.device)[None] >= half
    expected = torch.stack([read(ids), torch.cat([read(ids[:, :half]), read(ids[:, half:])], 2)])
    try:
        found = torch.stack([read(ids, **documents_apart(model, each)) for each in (torch.zeros_like(ids), second)])
    except (RuntimeError, TypeError, ValueError):  # the model does not accept such a mask
        found = torch.full_like(expected, torch.inf)
    rounding = 16 * torch.finfo(model.dtype).eps  # each block adds some
    if ((found - expected).norm(dim=-1) > (1e-2 + rounding) * expected.norm(dim=-1)).any():
        raise UserError(
            f"activations.separate_documents: {type(model).__name__} cannot read documents apart by a mask alone, "
            "as with a sliding window, a convolution or a recurrence; allowed: false"
        )

"""Directions of concepts: the tokens that they promote, and the concepts with similar directions."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.families import final_norm
from cocomix.sae.autoencoder import SparseAutoencoder

AT_A_TIME = 1024
"""Number of concepts compared with all tokens or all concepts at a time."""


class Best(NamedTuple):
    """The best tokens or concepts for each concept, best first."""

    numbers: Tensor
    """Ids of tokens or concepts: int64 [concepts, most]."""
    values: Tensor
    """Logits or cosines: float32 [concepts, most]."""


def directions(sae: SparseAutoencoder) -> Tensor:
    """The direction of each concept in the autoencoder's scale, normalised to length 1: [concepts, d_model].

    It is also the direction in the base model: `load_sae`'s autoencoders do not scale dimensions separately.
    """
    decoder = F.normalize(sae.decoder, dim=1)
    return torch.cat([decoder, -decoder]) if sae.config.architecture == "abstopk" else decoder


@torch.no_grad()
def promoted(model: PreTrainedModel, sae: SparseAutoencoder, vocab: int, most: int) -> Best:
    """The tokens whose logits a concept's direction raises most, by the logit lens.

    The logit lens applies the final norm and the unembedding, and skips the blocks above. The norm is linear only at a
    fixed scale of the residual stream: there it subtracts the direction's mean (LayerNorm) and weights its dimensions.
    `norm(direction) - norm(0)` computes that, also for RMSNorm, and cancels the norm's bias, which is the same for all
    concepts. Logits are relative to their mean over the vocabulary: raising all tokens equally promotes none.

    Args:
        vocab: number of tokens considered; a base model may have more rows than its tokenizer has tokens.

    Raises:
        UserError: when the base model has no final norm.
    """
    norm = copy.deepcopy(final_norm(model)).float()
    unembedding = model.get_output_embeddings().weight[:vocab].float()
    parts = []
    for some in torch.split(directions(sae), AT_A_TIME):
        logits = (norm(some) - norm(torch.zeros_like(some))) @ unembedding.T
        parts.append((logits - logits.mean(1, keepdim=True)).topk(min(most, logits.shape[1])))
    return _joined(parts)


@torch.no_grad()
def nearest(sae: SparseAutoencoder, most: int) -> Best:
    """The other concepts with the largest cosine similarity of directions."""
    every = directions(sae)
    parts = []
    for start, some in zip(range(0, len(every), AT_A_TIME), torch.split(every, AT_A_TIME), strict=True):
        cosines = some @ every.T
        cosines.diagonal(start).fill_(-2)
        parts.append(cosines.topk(min(most, len(every) - 1)))
    return _joined(parts)


def _joined(parts: list[torch.return_types.topk]) -> Best:
    return Best(torch.cat([each.indices for each in parts]).cpu(), torch.cat([each.values for each in parts]).cpu())

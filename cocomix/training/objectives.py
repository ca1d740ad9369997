"""Objectives: what a method minimises. Each wraps its model, and returns sums, so that any split of a batch into
micro-batches and processes gives the same gradient."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from cocomix.modeling import CoCoMixForCausalLM

NO_LABEL = -1


class Losses(NamedTuple):
    """Sums over a micro-batch, in nats."""

    tokens: Tensor
    """Next-token cross-entropy, summed over the windows' tokens but the last ones."""
    concepts: Tensor
    """Concept loss, summed over the labelled positions."""


class NextToken(nn.Module):
    """Next-token prediction."""

    concept_weight = 0.0

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor, labels: Tensor | None = None) -> Losses:  # noqa: ARG002
        """windows: token ids, int64 [batch, context]."""
        logits = self.model(windows, use_cache=False).logits
        return Losses(next_token_loss(logits, windows), logits.new_zeros(()))


class ConceptMixing(nn.Module):
    """CoCoMix: next-token prediction plus `concept_weight` times concept prediction (paper Eq. 4)."""

    def __init__(self, model: CoCoMixForCausalLM, concept_weight: float) -> None:
        super().__init__()
        self.model, self.concept_weight = model, concept_weight

    def forward(self, windows: Tensor, labels: Tensor) -> Losses:
        """Run the model.

        Args:
            windows: token ids, int64 [batch, context].
            labels: concepts of each position, int64 [batch, context, k_attr], `NO_LABEL` where there is none.
        """
        output = self.model(windows, use_cache=False)
        return Losses(next_token_loss(output.logits, windows), concept_loss(output.concept_logits, labels))


Objective = NextToken | ConceptMixing


def next_token_loss(logits: Tensor, windows: Tensor) -> Tensor:
    """Summed cross-entropy of each token given those before it.

    Args:
        logits: [batch, context, vocab].
        windows: token ids, int64 [batch, context].
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")


def concept_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed concept loss: the mean of the cross-entropies to a position's labels (paper Eq. 2), in one pass.

    The mean of CE(z, i) over labels i is logsumexp(z) - mean z_i. Positions without a label count nothing.

    Args:
        logits: z, [batch, context, num_concepts].
        labels: int64 [batch, context, k_attr], `NO_LABEL` where there is none.
    """
    logits = logits.float()
    valid = labels != NO_LABEL
    labelled = valid.any(-1)
    chosen = logits.gather(-1, labels.clamp(min=0)).masked_fill(~valid, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)
    return ((logits.logsumexp(-1) - chosen) * labelled).sum()


def labelled_positions(labels: Tensor) -> Tensor:
    """How many positions have at least one label: int64 []. labels: as of `concept_loss`."""
    return torch.count_nonzero((labels != NO_LABEL).any(-1))

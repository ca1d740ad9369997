"""Training objectives, one per method.

Each wraps its model and returns sums, so that any split of a batch into micro-batches and processes gives the same
gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from cocomix.base.flops import forward_flops
from cocomix.base.hooks import residual_at
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.models.accounting import flops_per_token
from cocomix.params import HiddenDistance
from cocomix.training.distillation import fused_distillation_losses
from cocomix.training.losses import fused_next_token_loss, hidden_loss, labelled_positions


class Losses(NamedTuple):
    """Sums over a micro-batch."""

    tokens: Tensor
    """Next-token cross-entropy in nats, summed over all positions but the last one of each window."""
    auxiliary: Tensor | None = None
    """The method's auxiliary loss, summed over `supervised` positions; None: the method has none.

    It has no gradient where `tokens` carries the gradient of both (`fused_distillation_losses`).
    """


class NextToken(nn.Module):
    """Next-token prediction alone: `ntp`, and `pause` with a model that has a pause vector after each token."""

    auxiliary_weight = 0.0

    def __init__(self, model: GPT2LMHeadModel | CoCoMixForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor) -> Losses:
        """Compute the losses; windows: token ids, int64 [batch, context]."""
        hidden = self.model.transformer(windows, use_cache=False).last_hidden_state
        return Losses(fused_next_token_loss(hidden, self.model.lm_head.weight, windows))

    def supervised(self, windows: Tensor) -> int:  # noqa: ARG002
        """Number of positions with an auxiliary loss."""
        return 0

    def training_flops(self, context: int) -> int:
        """FLOPs of training on one text token: the forward pass, and twice as many for the backward pass."""
        return 3 * flops_per_token(self.model.config, context)


class Distillation(nn.Module):
    """Next-token prediction plus `auxiliary_weight` times KL(base || student) (paper section 3, KD baseline)."""

    def __init__(self, model: GPT2LMHeadModel, base: PreTrainedModel, kl_weight: float) -> None:
        super().__init__()
        self.model, self.auxiliary_weight = model, kl_weight
        self._base = (base,)  # not a submodule: it is neither trained nor saved

    def forward(self, windows: Tensor) -> Losses:
        """Compute the losses; windows: token ids, int64 [batch, context]."""
        head = self.model.lm_head.weight
        with torch.no_grad():
            # A pretrained base model's vocabulary may be padded beyond the tokenizer's.
            wanted = self._base[0](input_ids=windows, use_cache=False).logits[..., : len(head)]
        hidden = self.model.transformer(windows, use_cache=False).last_hidden_state
        return Losses(*fused_distillation_losses(hidden, head, windows, wanted, self.auxiliary_weight))

    def supervised(self, windows: Tensor) -> int:
        """Number of positions with an auxiliary loss."""
        return windows.shape[0] * (windows.shape[1] - 1)

    def training_flops(self, context: int) -> int:
        """FLOPs per text token as in `NextToken`, plus the base model's forward pass."""
        return 3 * flops_per_token(self.model.config, context) + forward_flops(self._base[0], context)


class ConceptMixing(nn.Module):
    """CoCoMix: next-token prediction plus `concept_weight` times concept prediction (paper Eq. 4)."""

    def __init__(self, model: CoCoMixForCausalLM, concept_weight: float) -> None:
        super().__init__()
        self.model, self.auxiliary_weight = model, concept_weight

    def forward(self, windows: Tensor, labels: Tensor) -> Losses:
        """Run the model.

        Args:
            windows: token ids, int64 [batch, context].
            labels: concepts of each position, int64 [batch, context, k_attr], padded with `NO_LABEL`.
        """
        output = self.model.transformer(windows, concept_labels=labels, use_cache=False)
        tokens = fused_next_token_loss(output.last_hidden_state, self.model.lm_head.weight, windows)
        return Losses(tokens, output.concept_loss)

    def supervised(self, windows: Tensor, labels: Tensor) -> int:  # noqa: ARG002
        """Number of positions with an auxiliary loss."""
        return int(labelled_positions(labels))

    def training_flops(self, context: int) -> int:
        """FLOPs per text token as in `NextToken`, without labelling, which happens once for all epochs and runs."""
        return 3 * flops_per_token(self.model.config, context)


class HiddenMixing(nn.Module):
    """Next-token prediction plus `concept_weight` times the distance to the base model's hidden state (Fig. 6b)."""

    def __init__(
        self,
        model: CoCoMixForCausalLM,
        base: PreTrainedModel,
        layer: int,
        distance: HiddenDistance,
        concept_weight: float,
    ) -> None:
        super().__init__()
        self.model, self.auxiliary_weight = model, concept_weight
        self._base = (base,)
        self._layer, self._distance = layer, distance

    def forward(self, windows: Tensor) -> Losses:
        """Compute the losses; windows: token ids, int64 [batch, context]."""
        output = self.model.transformer(windows, use_cache=False)
        with torch.no_grad():
            wanted = residual_at(self._base[0], windows, self._layer)
        distance = hidden_loss(output.base_hidden, wanted, self._distance)
        tokens = fused_next_token_loss(output.last_hidden_state, self.model.lm_head.weight, windows)
        return Losses(tokens, distance)

    def supervised(self, windows: Tensor) -> int:
        """Number of positions with an auxiliary loss."""
        return windows.numel()

    def training_flops(self, context: int) -> int:
        """FLOPs per text token as in `NextToken`, plus the base model's forward pass up to the layer."""
        base = forward_flops(self._base[0], context, self._layer)
        return 3 * flops_per_token(self.model.config, context) + base


Objective = NextToken | Distillation | ConceptMixing | HiddenMixing

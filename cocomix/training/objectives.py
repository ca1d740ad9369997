"""Training objectives: next-token prediction, alone or with auxiliary losses.

Each wraps its model and returns sums, so that any split of a batch into micro-batches and processes gives the same
gradient.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from cocomix.base.blocks import blocks_of
from cocomix.base.flops import forward_flops
from cocomix.base.hooks import residual_at
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.models.accounting import flops_per_token
from cocomix.params import HiddenDistance, MtpParams, ScheduleParams
from cocomix.shapes.models import further_tokens_flops
from cocomix.tokens.window_data import Drawn
from cocomix.training.distillation import Distillation
from cocomix.training.losses import fused_next_token_loss, hidden_loss, labelled_positions

Auxiliary = Literal["concept", "hidden", "distillation", "further_tokens"]
"""Names of the auxiliary losses: of concepts, hidden states, the base model's distribution, and tokens after next."""


class Weighted(NamedTuple):
    """Weight of an auxiliary loss."""

    weight: float
    schedule: ScheduleParams = ScheduleParams()
    """Factor of the weight over the steps."""


class Losses(NamedTuple):
    """Sums over a micro-batch."""

    tokens: Tensor
    """Next-token cross-entropy in nats, summed over all positions but the last one of each window. It also carries the
    gradient of the weighted distillation loss."""
    auxiliary: dict[Auxiliary, Tensor]
    """Each auxiliary loss, summed over its positions. That of `distillation` has no gradient."""


class Objective(nn.Module):
    """Next-token prediction, with distillation or without: `ntp`, `kd`, `pause` (paper section 3).

    The forward pass of every objective takes the columns of a batch (`cocomix.tokens.window_data`) by name, and
    `kl_weight`, float32 []: the present weight of distillation, or None to leave it out.
    """

    def __init__(self, model: PreTrainedModel, distillation: Distillation | None = None) -> None:
        super().__init__()
        self.model = model
        self.distillation = distillation
        self.weights: dict[Auxiliary, Weighted] = {}
        """The auxiliary losses."""
        self.teacher_forcing = 0.0
        """Share of the training windows whose labels are mixed in first."""
        self.mixing_learning_rate: float | None = None
        """Peak learning rate of `mixing_weights`; None: that of the others."""
        if distillation is not None:
            self.weights["distillation"] = Weighted(distillation.params.kl_weight, distillation.params.schedule)

    def forward(self, windows: Tensor, drawn: Drawn | None = None, kl_weight: Tensor | None = None) -> Losses:
        """Compute the losses; windows: token ids, int64 [batch, context]."""
        hidden = self.model.base_model(windows, use_cache=False).last_hidden_state
        return self._token_losses(hidden, windows, drawn, kl_weight)

    def _token_losses(self, hidden: Tensor, windows: Tensor, drawn: Drawn | None, kl_weight: Tensor | None) -> Losses:
        head = self.model.lm_head.weight
        if self.distillation is None or kl_weight is None:
            return Losses(fused_next_token_loss(hidden, head, windows), {})
        tokens, divergence = self.distillation.losses(hidden, head, windows, drawn, kl_weight)
        return Losses(tokens, {"distillation": divergence})

    def positions(self, windows: Tensor, labels: Tensor | None = None) -> dict[Auxiliary, int]:  # noqa: ARG002
        """Number of positions that each auxiliary loss is summed over."""
        return {"distillation": self.distillation.positions(windows)} if self.distillation else {}

    def blocks_in_training(self) -> list[nn.Module]:
        """The transformer blocks that are trained."""
        return list(blocks_of(self.model))

    def checkpoint_activations(self) -> None:
        """Recompute each block's activations in the backward pass from now on, instead of keeping them."""
        self.model.activation_checkpointing_enable()

    def mixing_weights(self) -> list[nn.Parameter]:
        """Weights of the layer that makes the mixed vector: of `compress`, or of the MLP in place of concepts."""
        mixer: nn.Module = getattr(self.model.base_model, "mixer", nn.Module())
        layers = (layer for name, layer in mixer.named_children() if name in ("compress", "mlp"))
        return [each for layer in layers for each in layer.parameters()]

    def training_flops(self, context: int) -> int:
        """FLOPs of training on one text token: the forward pass, and twice as many for the backward pass.

        Concept labels and cached distributions are made once for all epochs and runs, and are not counted.
        """
        return 3 * flops_per_token(self.model.config, context)

    def distillation_flops(self, context: int) -> int:
        """FLOPs per text token of the base model, in steps with distillation."""
        return self.distillation.flops(context) if self.distillation else 0


class ConceptMixing(Objective):
    """CoCoMix: next-token prediction plus `concept_weight` times concept prediction (paper Eq. 4)."""

    def __init__(
        self,
        model: CoCoMixLanguageModel,
        concept_weight: Weighted,
        distillation: Distillation | None = None,
        teacher_forcing: float = 0.0,
    ) -> None:
        super().__init__(model, distillation)
        self.weights["concept"] = concept_weight
        self.teacher_forcing = teacher_forcing

    def forward(  # type: ignore[override]
        self,
        windows: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        forced_rows: Tensor | None = None,
        drawn: Drawn | None = None,
        kl_weight: Tensor | None = None,
    ) -> Losses:
        """Compute the losses.

        Args:
            windows: token ids, int64 [batch, context].
            labels: concepts of each position, int64 [batch, context, labels], padded with `NO_LABEL`.
            label_weights: float32, of `labels`; those of a position sum to 1. None: equal.
            forced_rows: windows whose labels are mixed in first, bool [batch]; None: none.
        """
        output = self.model.base_model(
            windows,
            concept_labels=labels,
            concept_label_weights=label_weights,
            forced_rows=forced_rows,
            use_cache=False,
        )
        losses = self._token_losses(output.last_hidden_state, windows, drawn, kl_weight)
        losses.auxiliary["concept"] = output.concept_loss
        return losses

    def positions(self, windows: Tensor, labels: Tensor | None = None) -> dict[Auxiliary, int]:
        """Number of positions that each auxiliary loss is summed over."""
        assert labels is not None
        return super().positions(windows) | {"concept": int(labelled_positions(labels))}


class HiddenMixing(Objective):
    """Next-token prediction plus `concept_weight` times the distance to the base model's hidden state (Fig. 6b).

    Args:
        layer: number of blocks of the base model below the hidden state.
    """

    def __init__(
        self,
        model: CoCoMixLanguageModel,
        base: PreTrainedModel,
        layer: int,
        distance: HiddenDistance,
        concept_weight: Weighted,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, distillation)
        self.weights["hidden"] = concept_weight
        self._base = (base,)  # not a submodule: it is neither trained nor saved
        self._layer, self._distance = layer, distance

    def forward(self, windows: Tensor, drawn: Drawn | None = None, kl_weight: Tensor | None = None) -> Losses:
        """Compute the losses; windows: token ids, int64 [batch, context]."""
        output = self.model.base_model(windows, use_cache=False)
        with torch.no_grad():
            wanted = residual_at(self._base[0], windows, self._layer)
        losses = self._token_losses(output.last_hidden_state, windows, drawn, kl_weight)
        losses.auxiliary["hidden"] = hidden_loss(output.base_hidden, wanted, self._distance)
        return losses

    def positions(self, windows: Tensor, labels: Tensor | None = None) -> dict[Auxiliary, int]:
        """Number of positions that each auxiliary loss is summed over."""
        return super().positions(windows, labels) | {"hidden": windows.numel()}

    def training_flops(self, context: int) -> int:
        """FLOPs per text token as in `Objective`, plus the base model's forward pass up to the layer."""
        return super().training_flops(context) + forward_flops(self._base[0], context, self._layer)


class MultiToken(Objective):
    """Multi-token prediction: several tokens ahead of each position (arXiv 2404.19737, section 2).

    All blocks of the model but its last are the trunk. The last block predicts the next token, and a further block
    each token after it; the final norm and the head are shared. Further blocks are trained, and not part of the model.
    """

    def __init__(self, model: PreTrainedModel, params: MtpParams) -> None:
        super().__init__(model)
        self.weights["further_tokens"] = Weighted(params.weight, params.schedule)
        block, last = type(blocks_of(model)[-1]), model.config.num_hidden_layers - 1
        self.blocks = nn.ModuleList(block(model.config, layer_idx=last) for _ in range(params.tokens - 1))
        self.blocks.apply(model._init_weights)
        maybe_install_capturing_hooks(model.base_model)  # else at the first request, which torch.compile cannot trace

    def forward(self, windows: Tensor, drawn: Drawn | None = None, kl_weight: Tensor | None = None) -> Losses:
        """Compute the losses; windows: token ids, int64 [batch, context]."""
        body = self.model.base_model
        output = body(windows, use_cache=False, output_hidden_states=True)
        losses = self._token_losses(output.last_hidden_state, windows, drawn, kl_weight)
        trunk = output.hidden_states[-2]
        given = {"attention_mask": create_causal_mask(self.model.config, trunk, None, None, None)}
        is_llama = hasattr(body, "rotary_emb")
        if is_llama:
            positions = torch.arange(trunk.shape[1], device=trunk.device)[None]
            given["position_embeddings"] = body.rotary_emb(trunk, positions)
        final_norm = body.norm if is_llama else body.ln_f
        further = torch.zeros((), device=windows.device)
        for skipped, block in enumerate(self.blocks, start=1):
            hidden = final_norm(block(trunk, **given))
            predicted = windows.shape[1] - 1 - skipped
            loss = fused_next_token_loss(hidden[:, :-skipped], self.model.lm_head.weight, windows[:, skipped:])
            further = further + loss * (windows.shape[1] - 1) / predicted  # each token's loss counts as a mean
        losses.auxiliary["further_tokens"] = further
        return losses

    def positions(self, windows: Tensor, labels: Tensor | None = None) -> dict[Auxiliary, int]:
        """Number of positions that each auxiliary loss is summed over."""
        return super().positions(windows, labels) | {"further_tokens": windows[:, 1:].numel()}

    def blocks_in_training(self) -> list[nn.Module]:
        """The transformer blocks that are trained, the further ones included."""
        return [*super().blocks_in_training(), *self.blocks]

    def checkpoint_activations(self) -> None:
        """As in `Objective`, in the further blocks too, which transformers does not find in the model."""
        super().checkpoint_activations()
        further: list[Any] = list(self.blocks)
        for block in further:
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = blocks_of(self.model)[-1]._gradient_checkpointing_func

    def training_flops(self, context: int) -> int:
        """FLOPs per text token as in `Objective`, plus the further blocks, each with a pass of the head."""
        further = len(self.blocks) * further_tokens_flops(self.model.config.to_dict(), context)
        return super().training_flops(context) + 3 * further

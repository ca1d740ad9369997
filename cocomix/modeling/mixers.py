"""Heads that predict from a hidden state, and turn the prediction into the vector that is mixed."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .concept_edits import ConceptEdits, Concepts, edited, put_first
from .configuration_cocomix import AnyCoCoMixConfig
from .kernels import predict, top_k


class Mixture(NamedTuple):
    """The output of a head for hidden states [batch, seq, d_model]."""

    vector: Tensor | None
    """The vector that is mixed at each position: [batch, seq, d_model]; None: nothing is mixed."""
    concept_logits: Tensor | None = None
    """z: [batch, seq, num_concepts]."""
    base_hidden: Tensor | None = None
    """The prediction of the base model's hidden state: [batch, seq, base_width]."""
    concept_loss: Tensor | None = None
    """See `CoCoMixOutput.concept_loss`."""


class _Predicted(NamedTuple):
    """Predicted concepts: the `concept_k` largest logits, and either all logits or the loss."""

    strengths: Tensor
    """[batch * seq, concept_k]."""
    indices: Tensor
    """int64 [batch * seq, concept_k]."""
    logits: Tensor | None = None
    loss: Tensor | None = None


class Gate(nn.Module):
    """A learned scalar, initially 0, that multiplies the vector that is mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, vector: Tensor) -> Tensor:
        """Multiply the vector [..., d_model]."""
        return self.weight * vector


def _gate(config: AnyCoCoMixConfig) -> nn.Module:
    return Gate() if config.gate else nn.Identity()


class ConceptHead(nn.Module):
    """Predict concepts and compress the prediction into one vector, the continuous concept.

    `released`: as in the released code, the hidden state is normalised like an autoencoder's input (mean over
    features, unbiased standard deviation, learned pre-bias), and the vector is de-normalised with the same statistics.
    `equations`: z = M h and c = W TopK(z) + b, with b = `pre_bias` (paper Eq. 2 and 3).
    """

    def __init__(self, config: AnyCoCoMixConfig) -> None:
        super().__init__()
        self.config = config
        self.predictor = nn.Linear(config.hidden_size, config.num_concepts)
        if config.mixing != "none" or config.concept_head == "released":
            self.pre_bias = nn.Parameter(torch.zeros(config.hidden_size))
        if config.mixing != "none":
            # A row per concept, so that only the rows of the predicted concepts are read.
            self.compress = nn.EmbeddingBag(config.num_concepts, config.hidden_size, mode="sum")
            if config.learned_scale:
                self.scale = nn.Parameter(torch.ones(1))
        self.gate = _gate(config)

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        forced_rows: Tensor | None = None,
        edits: ConceptEdits | None = None,
        position_ids: Tensor | None = None,
    ) -> Mixture:
        """Predict and compress.

        Args:
            hidden: [batch, seq, d_model], the residual stream after `concept_layer` blocks.
            labels: concepts of each position, int64 [batch, seq, k_attr], negative: no label. With labels, the output
                has the loss instead of the logits, which are never all in memory.
            label_weights: weights of the labels, float32 [batch, seq, k_attr]; None: equal ones.
            forced_rows: rows in which labels take the first places among the concepts, bool [batch]; None: none.
            edits: edits of the concepts before mixing, by their `position_ids` [batch, seq]; not with `labels`.
        """
        released = self.config.concept_head == "released"
        if released:
            std, mean = torch.std_mean(hidden, dim=-1, keepdim=True)
            std = std + 1e-5
        predicted = self._predicted(
            (hidden - mean) / std - self.pre_bias if released else hidden, labels, label_weights
        )
        if forced_rows is not None and labels is not None and self._mixes:
            predicted = _labels_first(predicted, labels, forced_rows)
        concepts = self._edited(predicted, edits, position_ids)
        vector = None
        if self._mixes:
            vector = self._compressed(concepts).view_as(hidden) + self.pre_bias
            vector = self.gate(vector * std + mean if released else vector)
        return Mixture(vector, concepts.logits, concept_loss=concepts.loss)

    @property
    def _mixes(self) -> bool:
        return self.config.mixing != "none"

    def _predicted(self, x: Tensor, labels: Tensor | None, label_weights: Tensor | None) -> _Predicted:
        k = self.config.concept_k if self._mixes else 0
        if labels is None:
            logits = self.predictor(x)
            strengths, indices = top_k(logits.flatten(0, 1), k)
            return _Predicted(strengths, indices, logits=logits)
        weights = None if label_weights is None else label_weights.flatten(0, 1)
        rows = predict(x.flatten(0, 1), self.predictor.weight, self.predictor.bias, labels.flatten(0, 1), k, weights)
        return _Predicted(rows.strengths, rows.indices, loss=rows.loss)

    def _edited(self, concepts: _Predicted, edits: ConceptEdits | None, position_ids: Tensor | None) -> _Predicted:
        if edits is None:
            return concepts
        assert concepts.logits is not None
        assert position_ids is not None
        shape = (*concepts.logits.shape[:2], -1)
        strengths, indices = concepts.strengths.view(shape), concepts.indices.view(shape)
        mixed = edited(Concepts(strengths, indices, concepts.logits, position_ids), edits)
        return concepts._replace(strengths=mixed.strengths.flatten(0, 1), indices=mixed.indices.flatten(0, 1))

    def _compressed(self, concepts: _Predicted) -> Tensor:
        strengths = concepts.strengths.detach() if self.config.stop_gradient else concepts.strengths
        vector: Tensor = self.compress(concepts.indices, per_sample_weights=strengths.to(self.compress.weight.dtype))
        return self.scale * vector if self.config.learned_scale else vector


def _labels_first(predicted: _Predicted, labels: Tensor, rows: Tensor) -> _Predicted:
    """Put the labels of some rows before the predicted concepts; the strengths of the first, second, .. place stay.

    Args:
        labels: int64 [batch, seq, m], negative: no label.
        rows: bool [batch].
    """
    shape = (*labels.shape[:2], -1)
    strengths, order = predicted.strengths.view(shape).sort(-1, descending=True)
    indices = predicted.indices.view(shape).gather(-1, order)
    forced = torch.where(rows[:, None, None], put_first(indices, labels), indices)
    return predicted._replace(strengths=strengths.flatten(0, 1), indices=forced.flatten(0, 1))


class HiddenHead(nn.Module):
    """Predict the base model's hidden state, normalised, and project the prediction (paper section 3.4, Fig. 6b)."""

    def __init__(self, config: AnyCoCoMixConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        inner = 4 * config.hidden_size
        self.predictor = nn.Sequential(
            nn.Linear(config.hidden_size, inner), nn.GELU("tanh"), nn.Linear(inner, config.base_width)
        )
        if config.mixing != "none":
            self.compress = nn.Linear(config.base_width, config.hidden_size)
        self.gate = _gate(config)

    def forward(self, hidden: Tensor) -> Mixture:
        """Predict and project; hidden: [batch, seq, d_model], the residual stream after `concept_layer` blocks."""
        predicted = self.predictor(self.norm(hidden))
        if self.config.mixing == "none":
            return Mixture(None, base_hidden=predicted)
        vector = self.compress(predicted.detach() if self.config.stop_gradient else predicted)
        return Mixture(self.gate(vector), base_hidden=predicted)


class Mlp(nn.Module):
    """An MLP computes the vector from the hidden state: a control with the size of a concept head, without concepts."""

    def __init__(self, config: AnyCoCoMixConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon),
            nn.Linear(config.hidden_size, config.mlp_width),
            nn.GELU("tanh"),
            nn.Linear(config.mlp_width, config.hidden_size),
        )
        self.gate = _gate(config)

    def forward(self, hidden: Tensor) -> Mixture:
        """Compute the vector; hidden: [batch, seq, d_model], the residual stream after `concept_layer` blocks."""
        return Mixture(self.gate(self.mlp(hidden)))


class PauseVector(nn.Module):
    """The same learned vector at every position (pause tokens, arXiv 2310.02226; paper Fig. 6f)."""

    def __init__(self, config: AnyCoCoMixConfig) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(config.hidden_size))
        self.gate = _gate(config)

    def forward(self, hidden: Tensor) -> Mixture:
        """Expand the vector to hidden's shape [batch, seq, d_model]."""
        return Mixture(self.gate(self.vector).expand_as(hidden))


Mixer = ConceptHead | HiddenHead | Mlp | PauseVector
MODULES = ["ConceptHead", "HiddenHead", "Mlp", "PauseVector"]
"""Their names, of modules that are kept on one device."""


def mixer_of(config: AnyCoCoMixConfig) -> Mixer:
    """The head that the configuration asks for."""
    match config.predicts:
        case "concepts":
            return ConceptHead(config)
        case "hidden":
            return HiddenHead(config)
        case _:
            return Mlp(config) if config.mlp_width else PauseVector(config)


@torch.no_grad()
def init_mixer(module: nn.Module, config: AnyCoCoMixConfig) -> None:
    """Initialise what of `module` is a head's own; the library initialises its linear layers and norms."""
    if isinstance(module, PauseVector):
        init.normal_(module.vector, mean=0.0, std=config.initializer_range)
    if isinstance(module, Gate):
        init.zeros_(module.weight)
    if isinstance(module, nn.EmbeddingBag):  # `compress`: keeps this where the rest of the head is loaded
        init.normal_(module.weight, mean=0.0, std=config.initializer_range)
    if isinstance(module, ConceptHead):
        if hasattr(module, "pre_bias"):
            init.zeros_(module.pre_bias)
        if hasattr(module, "scale"):
            init.ones_(module.scale)
        if config.concept_init == "tied":
            rows = F.normalize(torch.randn_like(module.predictor.weight), dim=1)
            init.copy_(module.predictor.weight, rows)
            if hasattr(module, "compress"):
                init.copy_(module.compress.weight, config.tied_scale * rows)

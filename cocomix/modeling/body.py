"""The CoCoMix model without the language model head, on the blocks of any backbone (arXiv 2502.08524).

- Below `concept_layer`, a plain model of the backbone over T positions.
- At `concept_layer`, each position predicts concepts: logits over a dictionary, whose `concept_k` largest are
  compressed into one vector, the continuous concept (section 2.2; `mixers.py`).
- Above, 2T positions: each token's hidden state, then its continuous concept. The language model head reads the
  concept positions, so logits have one row per text token, and the last block computes only these positions.

The cache holds T entries in the blocks below and 2T above. An attention mask is built once for each of the two lengths.
The paper's ablations are fields of the configuration; without interleaving there are T positions throughout.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .concept_edits import ConceptEdits
from .configuration_cocomix import AnyCoCoMixConfig
from .mixers import Mixer, Mixture


@dataclass
class CoCoMixOutput(ModelOutput):
    """Output of the model; `logits` [batch, seq, vocab] only with the language model head."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    """After the final norm, one row per text token: [batch, seq, d_model]."""
    concept_logits: Tensor | None = None
    """[batch, seq, num_concepts], where concepts are predicted and no `concept_labels` are given."""
    concept_loss: Tensor | None = None
    """With `concept_labels`: the sum over positions with a label of the mean cross-entropy to their labels (paper
    Eq. 2), or of the sum weighted by `concept_label_weights`, float32 []."""
    base_hidden: Tensor | None = None
    """[batch, seq, base_width], where the base model's hidden state is predicted."""
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """On request: after 0, 1, .. blocks, the last one after the final norm; with interleaving, [batch, 2 x seq,
    d_model] above the concept layer."""
    attentions: tuple[Tensor, ...] | None = None
    """On request, with eager attention: [batch, heads, queries, keys] of each block."""


class _PairLayer(DynamicLayer):
    """Cache of a block with two positions per token."""

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(2 * tokens_to_remove)


class CoCoMixCache(DynamicCache):
    """A key-value cache with one entry per token below the concept head and, with interleaving, two above."""

    def __init__(self, config: AnyCoCoMixConfig) -> None:
        single = config.concept_layer if config.interleaves else config.num_hidden_layers
        layers = [(DynamicLayer if i < single else _PairLayer)() for i in range(config.num_hidden_layers)]
        Cache.__init__(self, layers=layers)


class CoCoMixBody(PreTrainedModel):
    """The model without the language model head; a backbone's class adds its embeddings, blocks and final norm."""

    mixer: Mixer

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, of which the last is the backbone's `_LastBlock` with interleaving."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm before the language model head."""

    @abstractmethod
    def _embedded(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """The input of the first block: [batch, seq, d_model]."""

    @abstractmethod
    def _to_blocks(self, hidden: Tensor, position_ids: Tensor) -> dict[str, Any]:
        """What blocks take of positions [1 or batch, length] besides the mask, by keyword."""

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        concept_labels: Tensor | None = None,
        concept_label_weights: Tensor | None = None,
        forced_rows: Tensor | None = None,
        concept_edits: ConceptEdits | None = None,
        **kwargs: Any,
    ) -> CoCoMixOutput:
        """Run the model.

        Args:
            input_ids: [batch, seq], or `inputs_embeds`: [batch, seq, d_model].
            attention_mask: 1 for tokens, 0 for padding: [batch, past + seq]. Or a mask that replaces the causal one,
                with the tokens that each token attends to, itself included: [batch, 1, seq, past + seq], bool or added
                to the scores. With interleaving, a token that attends to another also attends to that one's vector;
                no token attends to its own vector.
            position_ids: [batch, seq]; default: counted from the cache's length. Where they restart, a new document
                begins that does not attend to earlier ones, as in other models; only without `attention_mask` and
                cache.
            past_key_values: a `CoCoMixCache`.
            concept_labels: concepts of each position, int64 [batch, seq, k_attr], negative: no label.
            concept_label_weights: their weights in the loss, float32 [batch, seq, k_attr]: those of a position sum to
                1; 0 where there is no label. None: a position's labels have equal weights.
            forced_rows: rows in which a position's labels take the first places among the concepts that are mixed, and
                the strengths stay (teacher forcing): bool [batch]; only with `concept_labels`. None: no row.
            concept_edits: edits of the predicted concepts before they are mixed (`concept_edits.py`), for all rows or
                a list for each row. Keys and values in the cache keep the edits with which they were computed.
                `concept_logits` of the output are unedited.
        """
        use_cache = use_cache if use_cache is not None else self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None  # blocks run twice, and would append their keys twice
        elif use_cache and past_key_values is None:
            past_key_values = CoCoMixCache(self.config)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        documents = position_ids
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is not None:
            attention_mask = self._checked(attention_mask, inputs_embeds, past)
        if position_ids is None:
            position_ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[None]

        hidden = self._embedded(inputs_embeds, position_ids)
        lower, upper = self.blocks[: self.config.concept_layer], self.blocks[self.config.concept_layer :]
        given = {"past_key_values": past_key_values, **kwargs}
        given |= self._to_blocks(hidden, position_ids)
        given["attention_mask"] = self._mask(hidden, attention_mask, past_key_values, documents, layer=0)
        for block in lower:
            hidden = block(hidden, **given)

        self._check_concepts(hidden, concept_labels, concept_label_weights, concept_edits)
        asked: dict[str, Any] = {}
        if concept_labels is not None:
            asked = {"labels": concept_labels, "label_weights": concept_label_weights, "forced_rows": forced_rows}
        elif concept_edits:
            asked = {"edits": concept_edits, "position_ids": position_ids}
        mixture: Mixture = self.mixer(hidden, **asked)
        if mixture.vector is not None:
            vector = mixture.vector.to(hidden.dtype)
            hidden = self._interleaved(hidden, vector) if self.config.interleaves else hidden + vector
        if self.config.interleaves:
            if attention_mask is not None:
                attention_mask = _of_pairs(attention_mask)
            if documents is not None:
                documents = torch.stack([2 * documents, 2 * documents + 1], dim=-1).flatten(1)
            layer = self.config.concept_layer
            given |= self._to_blocks(hidden, position_ids.repeat_interleave(2, dim=-1))
            given["attention_mask"] = self._mask(hidden, attention_mask, past_key_values, documents, layer)
        for block in upper:
            hidden = block(hidden, **given)

        return CoCoMixOutput(
            last_hidden_state=self.final_norm(hidden),
            concept_logits=mixture.concept_logits,
            concept_loss=mixture.concept_loss,
            base_hidden=mixture.base_hidden,
            past_key_values=past_key_values if use_cache else None,
        )

    def _checked(self, mask: Tensor, embeds: Tensor, past: int) -> Tensor:
        """Convert a mask to the form that the attention implementation takes.

        Raises:
            ValueError: when its shape does not fit the inputs.
        """
        rows, seq = embeds.shape[:2]
        if mask.dim() == 4:
            keys = mask.shape[3]  # without interleaving, a static cache may have empty slots
            is_long = keys == past + seq or (keys > past + seq and not self.config.interleaves)
            if mask.shape[0] not in (1, rows) or mask.shape[1:3] != (1, seq) or not is_long:
                raise ValueError(f"attention_mask: {list(mask.shape)}; must be [{rows}, 1, {seq}, {past + seq}]")
            kind = self.config._attn_implementation
            if kind not in ("eager", "sdpa"):
                raise ValueError(f"attention_mask: {kind} attention takes none of four dimensions; use eager or sdpa")
            if not mask.is_floating_point():
                mask = mask.bool()
                least = torch.finfo(embeds.dtype).min
                return mask if kind == "sdpa" else embeds.new_zeros(mask.shape).masked_fill_(~mask, least)
            return mask.to(embeds.dtype)
        if mask.shape != (rows, past + seq):
            flat, square = [rows, past + seq], [rows, 1, seq, past + seq]
            raise ValueError(f"attention_mask: {list(mask.shape)}; must be {flat} or {square}")
        return mask

    def _check_concepts(
        self, hidden: Tensor, labels: Tensor | None, weights: Tensor | None, edits: ConceptEdits | None
    ) -> None:
        predicts, mixing = self.config.predicts, self.config.mixing
        if labels is not None and predicts != "concepts":
            raise ValueError(f"concept_labels: this model predicts no concepts (predicts: {predicts})")
        if labels is not None and (labels.dim() != 3 or labels.shape[:2] != hidden.shape[:2]):
            rows, seq = hidden.shape[:2]
            raise ValueError(f"concept_labels: {list(labels.shape)}; must be [{rows}, {seq}, k_attr]")
        if weights is not None and (labels is None or weights.shape != labels.shape):
            allowed = "None, as concept_labels" if labels is None else f"{list(labels.shape)}, as concept_labels"
            raise ValueError(f"concept_label_weights: {list(weights.shape)}; must be {allowed}")
        if edits and (predicts != "concepts" or mixing == "none"):
            raise ValueError(
                f"concept_edits: this model mixes no concepts (predicts: {predicts}, mixing: {mixing}), so there is "
                "nothing to edit"
            )
        if edits and labels is not None:
            raise ValueError("concept_edits and concept_labels: give one of them; the concept loss is of no edit")

    def _interleaved(self, hidden: Tensor, vector: Tensor) -> Tensor:
        if self.config.mixing == "interleave_with_state":
            vector = vector + hidden
        return torch.stack([hidden, vector], dim=2).flatten(1, 2)

    def _mask(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        documents: Tensor | None,
        layer: int,
    ) -> Tensor | None:
        """The mask for blocks over [batch, length] positions; `documents` [batch, length] restarts at each document."""
        if self.config._attn_implementation == "sdpa" and attention_mask is documents is cache is None:
            return None  # as transformers, but for torch.compile before 2.13, where its mask rules out flash kernels
        mask: Tensor | None = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=documents,
            layer_idx=layer,
        )
        return mask


def _of_pairs(mask: Tensor) -> Tensor:
    """Expand a mask over tokens to twice as many positions: each token's, followed by its vector's."""
    if mask.dim() == 2:
        return mask.repeat_interleave(2, dim=-1)
    pairs = mask.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    seq, past = mask.shape[2], mask.shape[3] - mask.shape[2]
    token = torch.arange(seq, device=mask.device)
    pairs[:, :, 2 * token, 2 * (past + token) + 1] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return pairs


def concept_rows(mask: Tensor | None, keys: int, queries: int, device: torch.device) -> Tensor:
    """The mask of queries from the concept positions alone, every second of those of `mask`.

    Args:
        mask: of all positions, bool or added to the scores, [batch or 1, 1, 2 x queries, keys]; None: the keys begin at
            the first position, and a static cache's empty slots may follow.
    """
    if mask is not None:
        return mask[:, :, 1::2]
    last_seen = torch.arange(1, 2 * queries, 2, device=device)
    return (torch.arange(keys, device=device) <= last_seen[:, None])[None, None]

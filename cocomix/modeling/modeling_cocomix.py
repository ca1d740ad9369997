"""The CoCoMix language model (arXiv 2502.08524), on transformers' GPT-2 blocks.

- Below `concept_layer`, a plain GPT-2 over T positions.
- At `concept_layer`, each position predicts concepts: logits over a dictionary, whose `concept_k` largest are
  compressed into one vector, the continuous concept (section 2.2; `mixers.py`).
- Above, 2T positions: each token's hidden state, then its continuous concept. The language model head reads the
  concept positions, so logits have one row per text token, and the last block computes only these positions.

The cache holds T entries in the blocks below and 2T above. An attention mask is built once for each of the two lengths.
The paper's ablations are fields of the configuration; without interleaving there are T positions throughout.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep  # type: ignore[attr-defined]
from transformers.models.gpt2.modeling_gpt2 import (
    GPT2Attention,
    GPT2Block,
    GPT2PreTrainedModel,
    eager_attention_forward,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .concept_edits import ConceptEdits, Concepts, is_by_row
from .configuration_cocomix import CoCoMixConfig
from .mixers import ConceptHead, Gate, HiddenHead, Mixture, Mlp, PauseVector


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


class _ConceptQueries(GPT2Attention):
    """Attention with queries from the concept positions only, and keys and values from all positions."""

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        kind = self.config._attn_implementation
        if kind not in ("eager", "sdpa") or self.reorder_and_upcast_attn or not _is_bare(self.c_attn):
            # Flash kernels align a shorter query with the end of the keys; a wrapper around c_attn must be called.
            attended, weights = super().forward(hidden_states, past_key_values, attention_mask, **kwargs)
            return attended[:, 1::2], None if weights is None else weights[:, :, 1::2]
        d, weight, bias = self.embed_dim, self.c_attn.weight.t(), self.c_attn.bias
        query = self._heads(F.linear(hidden_states[:, 1::2], weight[:d], bias[:d]))
        key, value = map(self._heads, F.linear(hidden_states, weight[d:], bias[d:]).chunk(2, dim=-1))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        asking, keys = query.shape[2], key.shape[2]
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, 1::2]
        else:  # no mask: the keys start at the first query's position; a static cache's empty slots may follow
            last_seen = torch.arange(1, 2 * asking, 2, device=key.device)
            attention_mask = torch.arange(keys, device=key.device) <= last_seen[:, None]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        dropout = self.attn_dropout.p if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.resid_dropout(self.c_proj(attended.flatten(2))), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)


def _is_bare(layer: nn.Module) -> bool:
    """Whether a layer is a plain Conv1D, without an adapter or hooks."""
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return type(layer) is Conv1D and not any(hooks)


def _of_pairs(mask: Tensor) -> Tensor:
    """Expand a mask over tokens to twice as many positions: each token's, followed by its vector's."""
    if mask.dim() == 2:
        return mask.repeat_interleave(2, dim=-1)
    pairs = mask.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    seq, past = mask.shape[2], mask.shape[3] - mask.shape[2]
    token = torch.arange(seq, device=mask.device)
    pairs[:, :, 2 * token, 2 * (past + token) + 1] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return pairs


class _LastBlock(GPT2Block):
    """The last block with interleaving: from 2T positions to the T concept positions that the head reads."""

    def __init__(self, config: CoCoMixConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.attn = _ConceptQueries(config, layer_idx=layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attended, _ = self.attn(self.ln_1(hidden_states), past_key_values, attention_mask, **kwargs)
        hidden = hidden_states[:, 1::2] + attended
        output: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return output


class _PairLayer(DynamicLayer):
    """Cache of a block with two positions per token."""

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(2 * tokens_to_remove)


class CoCoMixCache(DynamicCache):
    """A key-value cache with one entry per token below the concept head and, with interleaving, two above."""

    def __init__(self, config: CoCoMixConfig) -> None:
        doubled = range(config.concept_layer if config.interleaves else config.n_layer, config.n_layer)
        layers = [(_PairLayer if i in doubled else DynamicLayer)() for i in range(config.n_layer)]
        Cache.__init__(self, layers=layers)


class CoCoMixPreTrainedModel(GPT2PreTrainedModel):
    """Initialisation, and the attributes that transformers reads."""

    config: CoCoMixConfig
    _no_split_modules = ["GPT2Block", "_LastBlock", "ConceptHead", "HiddenHead", "Mlp", "PauseVector"]
    _can_compile_fullgraph = False  # it implies generation with a static cache, which cannot hold two lengths
    _can_record_outputs = {"hidden_states": GPT2Block, "attentions": GPT2Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PauseVector):
            init.normal_(module.vector, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, Gate):
            init.zeros_(module.weight)
        if isinstance(module, nn.EmbeddingBag):  # `compress`: keeps this where the rest of the head is loaded
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, ConceptHead):
            if hasattr(module, "pre_bias"):
                init.zeros_(module.pre_bias)
            if hasattr(module, "scale"):
                init.ones_(module.scale)
            if self.config.concept_init == "tied":
                rows = F.normalize(torch.randn_like(module.predictor.weight), dim=1)
                init.copy_(module.predictor.weight, rows)
                if hasattr(module, "compress"):
                    init.copy_(module.compress.weight, self.config.tied_scale * rows)


class CoCoMixModel(CoCoMixPreTrainedModel):
    """The model without the language model head."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, layer_idx=i) for i in range(config.n_layer))
        if config.interleaves:
            self.h[-1] = _LastBlock(config, layer_idx=config.n_layer - 1)
        mixers = {"concepts": ConceptHead, "hidden": HiddenHead, "nothing": Mlp if config.mlp_width else PauseVector}
        self.mixer = mixers[config.predicts](config)
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.wte = value

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
            inputs_embeds = self.wte(input_ids)
        documents = position_ids
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is not None:
            attention_mask = self._checked(attention_mask, inputs_embeds, past)
        if position_ids is None:
            position_ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[None]

        hidden = self.drop(inputs_embeds + self.wpe(position_ids))
        lower, upper = self.h[: self.config.concept_layer], self.h[self.config.concept_layer :]
        mask = self._mask(hidden, attention_mask, past_key_values, documents, layer=0)
        for block in lower:
            hidden = block(hidden, past_key_values, mask, **kwargs)

        self._check_concepts(hidden, concept_labels, concept_label_weights, concept_edits)
        given: dict[str, Any] = {}
        if concept_labels is not None:
            given = {"labels": concept_labels, "label_weights": concept_label_weights, "forced_rows": forced_rows}
        elif concept_edits:
            given = {"edits": concept_edits, "position_ids": position_ids}
        mixture: Mixture = self.mixer(hidden, **given)
        if mixture.vector is not None:
            vector = mixture.vector.to(hidden.dtype)
            hidden = self._interleaved(hidden, vector) if self.config.interleaves else hidden + vector
        if self.config.interleaves:
            if attention_mask is not None:
                attention_mask = _of_pairs(attention_mask)
            if documents is not None:
                documents = torch.stack([2 * documents, 2 * documents + 1], dim=-1).flatten(1)
            mask = self._mask(hidden, attention_mask, past_key_values, documents, layer=self.config.concept_layer)
        for block in upper:
            hidden = block(hidden, past_key_values, mask, **kwargs)

        return CoCoMixOutput(
            last_hidden_state=self.ln_f(hidden),
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
        if mask.dim() != 2:
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


class CoCoMixForCausalLM(CoCoMixPreTrainedModel, GenerationMixin):
    """The CoCoMix language model with its head: logits [batch, seq, vocab], one row per text token."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.transformer = CoCoMixModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        concept_edits: ConceptEdits | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CoCoMixOutput | tuple[Any, ...]:
        """Run the model; see `CoCoMixModel.forward`.

        Args:
            labels: token ids, [batch, seq], -100: no label; shifted here. With labels, the output has the language
                model's loss; the training objective adds the concept loss.
            logits_to_keep: number of last positions to compute logits for; 0: all.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        body: CoCoMixOutput = self.transformer(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            concept_edits=concept_edits,
            return_dict=True,
            **kwargs,
        )
        logits, loss = self.lm_head(slice_logits_to_keep(body.last_hidden_state, logits_to_keep)), None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        output = CoCoMixOutput(loss=loss, logits=logits, **body)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @torch.no_grad()
    def concepts(self, input_ids: Tensor) -> Concepts:
        """The `concept_k` predicted concepts of each position, strongest first.

        Args:
            input_ids: [batch, seq].

        Raises:
            ValueError: when the model predicts no concepts.
        """
        if self.config.predicts != "concepts":
            raise ValueError(f"this model predicts no concepts (predicts: {self.config.predicts})")
        logits = self.transformer(input_ids, use_cache=False).concept_logits
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None].expand_as(input_ids)
        strengths, indices = logits.topk(self.config.concept_k)
        return Concepts(strengths, indices, logits, positions)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **model_kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        edits = model_kwargs.get("concept_edits")
        if edits and is_by_row(edits):  # all beams or samples of a row use its edits
            model_kwargs["concept_edits"] = [each for each in edits for _ in range(expand_size)]
        expanded: tuple[Tensor, dict[str, Any]] = super()._expand_inputs_for_generation(
            expand_size, *args, **model_kwargs
        )
        return expanded

    def _assisted_decoding(self, *args: Any, generation_config: Any, **kwargs: Any) -> Any:
        asked = [name for name in ("output_attentions", "output_hidden_states") if getattr(generation_config, name)]
        if self.config.interleaves and asked:
            raise ValueError(
                f"{asked[0]}: assisted decoding cuts it by tokens, of which each is two positions above the concept "
                "layer; leave it out, or decode without assistance"
            )
        return super()._assisted_decoding(*args, generation_config=generation_config, **kwargs)

    def _get_candidate_generator(self, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        # An assistant may have no or other concepts: it drafts without edits, and the model verifies with them.
        model_kwargs = {name: each for name, each in model_kwargs.items() if name != "concept_edits"}
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Continuous batching, for models without interleaving only."""
        if self.config.interleaves:
            raise ValueError("the paged cache of continuous batching cannot hold a CoCoMix model's two lengths")
        return super().init_continuous_batching(*args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        if self.config.interleaves:
            kind, given = generation_config.cache_implementation, model_kwargs.get("past_key_values")
            if kind not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation {kind!r} cannot hold a CoCoMix model's two lengths (T below and 2T above "
                    "the concept layer); leave it out, or give 'dynamic'"
                )
            if given is not None and not isinstance(given, CoCoMixCache):
                raise ValueError(
                    f"past_key_values is a {type(given).__name__}, which takes one position for one token; above the "
                    "concept layer a token is two: give a CoCoMixCache"
                )
            if generation_config.use_cache and given is None:
                model_kwargs["past_key_values"] = CoCoMixCache(self.config)
                generation_config.cache_implementation = None  # the cache already exists
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)

"""The CoCoMix language model: `body.py` with a language model head, and generation. A class for each backbone."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_utils import slice_logits_to_keep  # type: ignore[attr-defined]

from .backbone_gpt2 import CoCoMixModel, CoCoMixPreTrainedModel
from .backbone_llama import CoCoMixLlamaModel, CoCoMixLlamaPreTrainedModel
from .body import CoCoMixCache, CoCoMixOutput
from .concept_edits import ConceptEdits, Concepts, is_by_row
from .configuration_cocomix import CoCoMixConfig, CoCoMixLlamaConfig


class CoCoMixLanguageModel(PreTrainedModel, GenerationMixin):
    """The CoCoMix language model with its head: logits [batch, seq, vocab], one row per text token."""

    lm_head: nn.Linear

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
        """Run the model; see `CoCoMixBody.forward`.

        Args:
            labels: token ids, [batch, seq], -100: no label; shifted here. With labels, the output has the language
                model's loss; the training objective adds the concept loss.
            logits_to_keep: number of last positions to compute logits for; 0: all.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        body: CoCoMixOutput = self.base_model(
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
        logits = self.base_model(input_ids, use_cache=False).concept_logits
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


class CoCoMixForCausalLM(CoCoMixLanguageModel, CoCoMixPreTrainedModel):
    """The CoCoMix language model on GPT-2."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.transformer = CoCoMixModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class CoCoMixLlamaForCausalLM(CoCoMixLanguageModel, CoCoMixLlamaPreTrainedModel):
    """The CoCoMix language model on Llama's blocks."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: CoCoMixLlamaConfig) -> None:
        super().__init__(config)
        self.model = CoCoMixLlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

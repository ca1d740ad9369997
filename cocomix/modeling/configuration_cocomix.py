"""Configurations of the CoCoMix language model: one for each backbone, with the same fields of concepts."""

from dataclasses import dataclass
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config, LlamaConfig


@dataclass(init=False, repr=False, eq=False)  # the library makes these of the whole configuration
class ConceptFields:
    """What a configuration says of the head at one layer whose prediction is mixed into the hidden states.

    The method is CoCoMix (arXiv 2502.08524); its ablations are values of these fields.

    Args:
        predicts: `concepts`: CoCoMix; `hidden`: the base model's hidden state instead (paper Fig. 6b); `nothing`: a
            learned vector, the same at every position, replaces the prediction (pause token, Fig. 6f), or what an MLP
            computes from the hidden state (see `mlp_width`).
        mixing: `interleave`: the vector is a position of its own after its token's; `interleave_with_state`: likewise,
            with the token's hidden state added to it; `add`: it is added to the token's hidden state (Fig. 6e);
            `none`: it is predicted but not mixed (Fig. 6d).
        concept_layer: blocks below the concept head. At least 1: generation counts past tokens in the cache of
            block 0, which must hold one entry per token.
        num_concepts: C, the size of the dictionary of concepts. This field and the next five are for
            `predicts: concepts`.
        concept_k: predicted concepts that are mixed into the continuous concept.
        concept_head: `released`: the hidden state is normalised before the prediction, and the continuous concept
            is de-normalised, as in the released code; `equations`: neither (paper Eq. 2 and 3).
        concept_init: `tied`: predictor rows of unit norm and compress = tied_scale times their transpose, so that
            mixing starts as a coarse copy of the hidden state; `normal`: N(0, initializer_range), as the released code.
        tied_scale: see `concept_init`.
        learned_scale: whether a learned scalar, initially 1, multiplies the output of compress.
        gate: whether a learned scalar, initially 0, multiplies the vector that is mixed: a start without concepts.
        stop_gradient: whether the language model's loss has no gradient through the prediction. It still trains
            compress, and with `released` also the pre-bias, which both share.
        base_width: width of the predicted hidden state, with `predicts: hidden`.
        mlp_width: hidden width of the MLP that computes the vector, with `predicts: nothing`; 0: a learned vector.
    """

    keys_to_ignore_at_inference = [
        "past_key_values",
        "last_hidden_state",
        "concept_logits",
        "concept_loss",
        "base_hidden",
    ]

    predicts: Literal["concepts", "hidden", "nothing"] = "concepts"
    mixing: Literal["interleave", "interleave_with_state", "add", "none"] = "interleave"
    concept_layer: int = 3
    num_concepts: int = 32768
    concept_k: int = 32
    concept_head: Literal["released", "equations"] = "released"
    concept_init: Literal["tied", "normal"] = "tied"
    tied_scale: float = 0.75
    learned_scale: bool = False
    gate: bool = False
    stop_gradient: bool = False
    base_width: int = 768
    mlp_width: int = 0

    def __post_init__(self, **kwargs: object) -> None:
        """Check the fields against each other."""
        super().__post_init__(**kwargs)  # type: ignore[misc]
        last: int = self.num_hidden_layers - 1  # type: ignore[attr-defined]
        if not 1 <= self.concept_layer <= last:
            raise ValueError(f"concept_layer ({self.concept_layer}) must be from 1 to num_hidden_layers - 1 ({last})")
        if not 1 <= self.concept_k <= self.num_concepts:
            raise ValueError(f"concept_k ({self.concept_k}) must be from 1 to num_concepts ({self.num_concepts})")
        if self.mlp_width < 0 or (self.mlp_width and self.predicts != "nothing"):
            raise ValueError(
                f"mlp_width ({self.mlp_width}) must be 0, or at least 1 with predicts (nothing), not ({self.predicts})"
            )
        if self.predicts == "nothing" and not (self.interleaves or (self.mlp_width and self.mixing == "add")):
            raise ValueError(
                f"mixing ({self.mixing}) must be interleave or interleave_with_state where nothing is predicted, or "
                "add with an MLP (mlp_width)"
            )
        if self.gate and self.mixing == "none":
            raise ValueError("gate must be false with mixing (none): there is no vector to multiply")
        if self.stop_gradient and (self.predicts == "nothing" or self.mixing == "none"):
            raise ValueError(
                f"stop_gradient must be false with predicts ({self.predicts}) and mixing ({self.mixing}): the language "
                "model's loss does not reach a prediction"
            )

    @property
    def interleaves(self) -> bool:
        """Whether the blocks above `concept_layer` have two positions per token."""
        return self.mixing in ("interleave", "interleave_with_state")


@strict
class CoCoMixConfig(ConceptFields, GPT2Config):
    """A GPT-2 configuration with the fields of concepts."""

    model_type = "cocomix"

    def __post_init__(self, **kwargs: object) -> None:
        """Check the fields against each other."""
        super().__post_init__(**kwargs)
        if self.add_cross_attention:
            raise ValueError("add_cross_attention must be false: there is nothing else to attend to")


@strict
class CoCoMixLlamaConfig(ConceptFields, LlamaConfig):
    """A Llama configuration with the fields of concepts.

    Args:
        qk_norm: whether each head's queries and keys are normalised, as in Qwen3.
    """

    model_type = "cocomix_llama"
    attribute_map = {"layer_norm_epsilon": "rms_norm_eps"}

    tie_word_embeddings: bool = True
    qk_norm: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        """Check the fields against each other."""
        super().__post_init__(**kwargs)
        if self.mlp_bias:
            raise ValueError("mlp_bias must be false: the blocks have none")


AnyCoCoMixConfig = CoCoMixConfig | CoCoMixLlamaConfig

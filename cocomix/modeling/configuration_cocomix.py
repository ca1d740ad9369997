"""Configuration of the CoCoMix language model."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config


@strict
class CoCoMixConfig(GPT2Config):
    """A GPT-2 shape with a concept head (arXiv 2502.08524).

    Args:
        num_concepts: C, the size of the dictionary that the concepts come from.
        concept_layer: blocks below the concept head. At least 1: generation counts past tokens in the cache of
            block 0, which must hold one entry a token.
        concept_k: predicted concepts that are mixed into the continuous concept.
        concept_init: `tied`: predictor rows of unit norm and compress = 0.75 times their transpose, so that mixing
            starts as a coarse copy of the hidden state; `normal`: N(0, initializer_range), as the released code.
    """

    model_type = "cocomix"

    num_concepts: int = 32768
    concept_layer: int = 3
    concept_k: int = 32
    concept_init: Literal["tied", "normal"] = "tied"

    def __post_init__(self, **kwargs: object) -> None:
        """Check what the fields must satisfy together."""
        super().__post_init__(**kwargs)
        if not 1 <= self.concept_layer < self.n_layer:
            raise ValueError(f"concept_layer ({self.concept_layer}) must be from 1 to n_layer - 1 ({self.n_layer - 1})")
        if not 1 <= self.concept_k <= self.num_concepts:
            raise ValueError(f"concept_k ({self.concept_k}) must be from 1 to num_concepts ({self.num_concepts})")

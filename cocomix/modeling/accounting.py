"""What a model holds and what a token costs: parameters and floating-point operations."""

from typing import NamedTuple

from torch import nn
from transformers import GPT2Config

from cocomix.modeling.configuration_cocomix import CoCoMixConfig


class Parameters(NamedTuple):
    """Parameter counts; tied embeddings count once."""

    stored: int
    active: int
    """Without the compress rows of the concepts that are not mixed: what one token uses (paper App. A)."""


def parameters(model: nn.Module) -> Parameters:
    """Count the parameters of a language model."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    config = getattr(model, "config", None)
    idle = (config.num_concepts - config.concept_k) * config.n_embd if isinstance(config, CoCoMixConfig) else 0
    return Parameters(stored, stored - idle)


def flops_per_token(config: GPT2Config, context: int) -> int:
    """Floating-point operations of a forward pass over `context` tokens, per text token.

    Matrix products only, two operations a multiply-add; attention over the full square, as dense kernels compute it.
    A training step costs three times as much. Above the concept layer every token is two positions among 2 x context.
    """
    d, inner = config.n_embd, config.n_inner or 4 * config.n_embd

    def block(length: int) -> int:
        projections = 2 * (3 * d * d + d * d + 2 * d * inner)
        attention = 2 * 2 * length * d
        return projections + attention

    head = 2 * d * config.vocab_size
    if not isinstance(config, CoCoMixConfig):
        return config.n_layer * block(context) + head
    below, above = config.concept_layer, config.n_layer - config.concept_layer
    concepts = 2 * d * (config.num_concepts + config.concept_k)
    return below * block(context) + above * 2 * block(2 * context) + concepts + head

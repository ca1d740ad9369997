"""What a model holds and what a token costs: parameters and floating-point operations."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

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
    if not isinstance(config, CoCoMixConfig) or config.predicts != "concepts" or config.mixing == "none":
        return Parameters(stored, stored)
    return Parameters(stored, stored - (config.num_concepts - config.concept_k) * config.n_embd)


def parameters_of(config: GPT2Config) -> Parameters:
    """Count the parameters of a model of this configuration, without making them."""
    with torch.device("meta"):
        return parameters(AutoModelForCausalLM.from_config(config))


def flops_per_token(config: GPT2Config, context: int) -> int:
    """Floating-point operations of a forward pass over `context` tokens, per text token.

    Matrix products only, two operations a multiply-add; attention over the full square, as dense kernels compute it.
    A training step costs three times as much. With interleaving, every token is two positions among 2 x context above
    the concept layer, of which the last block computes one.
    """
    d, inner = config.n_embd, config.n_inner or 4 * config.n_embd

    def block(length: int) -> int:
        projections = 2 * (3 * d * d + d * d + 2 * d * inner)
        attention = 2 * 2 * length * d
        return projections + attention

    head = 2 * d * config.vocab_size
    if not isinstance(config, CoCoMixConfig):
        return config.n_layer * block(context) + head
    if not config.interleaves:
        return config.n_layer * block(context) + _mixer(config) + head
    keys_and_values_of_the_token = 2 * 2 * d * d
    last = block(2 * context) + keys_and_values_of_the_token
    below, above = config.concept_layer, config.n_layer - config.concept_layer
    return below * block(context) + (above - 1) * 2 * block(2 * context) + last + _mixer(config) + head


def _mixer(config: CoCoMixConfig) -> int:
    d, mixes = config.n_embd, config.mixing != "none"
    match config.predicts:
        case "concepts":
            return 2 * d * (config.num_concepts + mixes * config.concept_k)
        case "hidden":
            return 2 * (4 * d * d + 4 * d * config.base_width + mixes * d * config.base_width)
        case "nothing":
            return 0

"""Parameter counts of a model, and its FLOPs per token."""

from torch import nn
from transformers import GPT2Config

from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.shapes import models as shapes
from cocomix.shapes.models import Parameters


def parameters(model: nn.Module) -> Parameters:
    """Count the parameters of a language model."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    config = getattr(model, "config", None)
    if not isinstance(config, CoCoMixConfig) or config.predicts != "concepts" or config.mixing == "none":
        return Parameters(stored, stored)
    return Parameters(stored, stored - (config.num_concepts - config.concept_k) * config.n_embd)


def parameters_of(config: GPT2Config) -> Parameters:
    """Count the parameters of a model of this configuration, without building it."""
    return shapes.parameters_of(config.to_dict())


def flops_per_token(config: GPT2Config, context: int) -> int:
    """FLOPs of a forward pass, per text token: see `shapes.flops_per_token`."""
    return shapes.flops_per_token(config.to_dict(), context)

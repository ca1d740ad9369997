"""Parameter counts of a model, and its FLOPs per token."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from cocomix.modeling.configuration_cocomix import ConceptFields
from cocomix.shapes import models as shapes
from cocomix.shapes.models import Parameters


def parameters(model: nn.Module) -> Parameters:
    """Count the parameters of a language model."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    config: Any = getattr(model, "config", None)
    mixes_concepts = isinstance(config, ConceptFields) and config.predicts == "concepts" and config.mixing != "none"
    unread = (config.num_concepts - config.concept_k) * config.hidden_size if mixes_concepts else 0
    return Parameters(stored, stored - unread)


def parameters_of(config: PreTrainedConfig) -> Parameters:
    """Count the parameters of a model of this configuration, without building it."""
    return shapes.parameters_of(config.to_dict())


def flops_per_token(config: PreTrainedConfig, context: int) -> int:
    """FLOPs of a forward pass, per text token: see `shapes.flops_per_token`."""
    return shapes.flops_per_token(config.to_dict(), context)

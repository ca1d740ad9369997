"""Build the configuration of a model from its shape."""

from transformers import GPT2Config

from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.plumbing.device import attention
from cocomix.shapes.models import Shape


def config_of(shape: Shape, context: int | None = None) -> GPT2Config:
    """The configuration of a shape, with the attention implementation for this machine.

    Args:
        context: tokens of the windows that the model will read; None: as many as it has positions.
    """
    kind = CoCoMixConfig if "concept_layer" in shape else GPT2Config
    return kind(**shape, attn_implementation=attention(context or shape["n_positions"]))

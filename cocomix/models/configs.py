"""Build the configuration of a model from its shape."""

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from cocomix.modeling.configuration_cocomix import CoCoMixConfig, CoCoMixLlamaConfig
from cocomix.plumbing.device import attention
from cocomix.shapes.models import Shape, dimensions

_PLAIN = {("gpt2", False): GPT2Config, ("llama", False): LlamaConfig, ("llama", True): Qwen3Config}
"""Of a plain model, by backbone and qk_norm."""


def config_of(shape: Shape, context: int | None = None) -> PreTrainedConfig:
    """The configuration of a shape, with the attention implementation for this machine.

    Args:
        context: tokens of the windows that the model will read; None: as many as it has positions.
    """
    size = dimensions(shape)
    if "concept_layer" in shape:
        kind = CoCoMixConfig if size.backbone == "gpt2" else CoCoMixLlamaConfig
    else:
        kind = _PLAIN[size.backbone, size.qk_norm]
        shape = {name: each for name, each in shape.items() if name != "qk_norm"}  # the kind says it
    return kind(**shape, attn_implementation=attention(context or size.context))

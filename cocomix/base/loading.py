"""Loading the base model for later stages, frozen, and the number of windows in a forward pass of it."""

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation

from cocomix.base.blocks import empty_above
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.device import attention, device
from cocomix.plumbing.runtime import runtime


def load_base(artifact: Artifact, context: int, layers: int | None = None) -> PreTrainedModel:
    """Load the base model in the type in which it is stored, `prepared`.

    On a CPU the weights are the mapped file: those that no forward pass reads take no memory.

    Args:
        artifact: a Hugging Face model folder.
        context: tokens of the windows that it will read.
        layers: only this many blocks are needed, as for `activations_at` their sites; None: the whole model.
    """
    # All families have eager attention; by default, transformers uses sdpa where a family has it.
    options: dict[str, Any] = {"attn_implementation": "eager"} if attention(context) == "eager" else {}
    options |= {"dtype": "auto", "use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(artifact.verified(), **options)
    if layers is not None:
        empty_above(model, layers)
    return prepared(model)


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare `model` in place: frozen, in evaluation mode, on this process's device."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU("tanh"))  # the same function, in one kernel instead of eight
    return model.requires_grad_(False).eval().to(device())


def micro_batch(context: int) -> int:
    """Windows of `context` tokens for one forward pass of a frozen model: `runtime().micro_batch`.

    auto: few enough that a block's activations stay in a CPU's cache; enough to fill a GPU, but not its memory.
    """
    asked = runtime().micro_batch
    return asked if asked != "auto" else max(1, (16384 if device().type == "cuda" else 2048) // context)


def longest_context(config: PreTrainedConfig) -> int | None:
    """The longest context that a model's configuration states; None: it states none, as without position embeddings."""
    says = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((each for each in says if isinstance(each, int) and each > 0), None)

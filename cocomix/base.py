"""The base model: the frozen language model whose residual stream the concepts describe.

Works with any Hugging Face causal language model whose blocks are one `nn.ModuleList`. The residual stream after
`layer` blocks is what transformers calls `hidden_states[layer]`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from cocomix.artifact import Artifact
from cocomix.device import attention, device
from cocomix.errors import UserError
from cocomix.runtime import runtime


def load_base(artifact: Artifact, context: int) -> PreTrainedModel:
    """The base model in fp32, `prepared`.

    Args:
        artifact: a Hugging Face model folder.
        context: tokens of the windows that it will read.
    """
    model = AutoModelForCausalLM.from_pretrained(
        artifact.verified(), dtype=torch.float32, attn_implementation=attention(context)
    )
    return prepared(model)


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, changed in place: frozen, in evaluation mode, on this process's device."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU("tanh"))  # the same function, in one kernel instead of eight
    return model.requires_grad_(False).eval().to(device())


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of blocks that make up the residual stream.

    Raises:
        UserError: when the model has no list of `num_hidden_layers` modules.
    """
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"base: {type(model).__name__} has no list of its {count} blocks, so its layers cannot be reached")


def check_layer(model: PreTrainedModel, layer: int) -> None:
    """Check that there is a residual stream after `layer` blocks with a block above it.

    Raises:
        UserError: otherwise.
    """
    count = len(blocks_of(model))
    if not 1 <= layer < count:
        raise UserError(f"activations.layer: {layer}: the base model has {count} blocks; allowed: 1 to {count - 1}")


def residual_at(model: PreTrainedModel, ids: Tensor, layer: int) -> Tensor:
    """The residual stream after `layer` blocks; nothing above is computed.

    Args:
        ids: [batch, seq].

    Returns:
        [batch, seq, d_model].
    """

    def stop(_block: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(_stream(output))

    handle = blocks_of(model)[layer - 1].register_forward_hook(stop)
    try:
        model(input_ids=ids, use_cache=False)
    except _Reached as reached:
        return reached.residual
    finally:
        handle.remove()
    raise AssertionError(f"{type(model).__name__} never ran its block {layer - 1}")


def forward_flops(model: PreTrainedModel, context: int, layers: int | None = None) -> int:
    """Floating-point operations of a forward pass over `context` tokens, a token.

    Matrix products only, attention over the full square, as `cocomix.modeling.flops_per_token` counts.

    Args:
        layers: only so many blocks; none: the whole model.
    """
    blocks = blocks_of(model)[:layers]
    matrices = [each.weight for each in blocks.modules() if isinstance(each, (nn.Linear, Conv1D))]
    if layers is None:
        matrices.append(model.get_output_embeddings().weight)
    attention = 4 * context * model.config.hidden_size
    return sum(2 * each.numel() for each in matrices) + len(blocks) * attention


@contextmanager
def residual_edited(model: PreTrainedModel, layer: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every forward pass of `model` goes on from `edit(residual)` after `layer` blocks.

    To differentiate with respect to the residual stream alone, let `edit` return a leaf tensor: the frozen blocks
    below then cost no backward pass.
    """

    def replace(_block: nn.Module, _inputs: Any, output: Any) -> Any:
        edited = edit(_stream(output))
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = blocks_of(model)[layer - 1].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def micro_batch(context: int) -> int:
    """Windows of `context` tokens for one forward pass of a frozen model: `runtime().micro_batch`.

    auto: few enough that what a block makes stays in a CPU's cache; enough to fill a GPU, but not its memory.
    """
    asked = runtime().micro_batch
    return asked if asked != "auto" else max(1, (16384 if device().type == "cuda" else 2048) // context)


class _Reached(BaseException):
    """Leaves a forward pass at the layer that was asked for."""

    def __init__(self, residual: Tensor) -> None:
        self.residual = residual


def _stream(output: Any) -> Tensor:
    """A block's residual stream: some families return a tuple that begins with it."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream

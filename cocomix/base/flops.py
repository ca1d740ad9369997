"""FLOPs of a base model's forward pass, counted from its modules, for any family."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.base.blocks import blocks_of


def forward_flops(model: PreTrainedModel, context: int, layers: int | None = None) -> int:
    """FLOPs per token of a forward pass over `context` tokens.

    Matrix products only, attention over the full square, as `cocomix.shapes.models.flops_per_token` counts; in a
    mixture of experts, only the experts that a token is routed to. A recurrence's own steps are not matrix products and
    do not count.

    Args:
        layers: count only this many blocks; None: the whole model.
    """
    blocks = blocks_of(model)[:layers]
    flops = sum(_matrix_flops(block) + context * _attention_flops(block, model.config) for block in blocks)
    return flops + (2 * model.get_output_embeddings().weight.numel() if layers is None else 0)


def sizes(model: PreTrainedModel, context: int) -> dict[str, Any]:
    """What other stages need to know of a base model without loading it, as JSON values.

    `d_model`; `n_layer`; `flops`, the `forward_flops` of the whole model; `flops_to_layer`, those of its first 1, 2, ..
    blocks.
    """
    layers = len(blocks_of(model))
    return {
        "d_model": model.config.hidden_size,
        "n_layer": layers,
        "flops": forward_flops(model, context),
        "flops_to_layer": [forward_flops(model, context, layer) for layer in range(1, layers + 1)],
    }


def _matrix_flops(block: nn.Module) -> int:
    """FLOPs per token of a block's weight matrices."""
    flops = 0
    for module in block.modules():
        if isinstance(module, nn.Embedding | nn.Conv1d):
            continue
        for name, each in module.named_parameters(recurse=False):
            if each.dim() == 2 and name == "weight":
                flops += 2 * each.numel()
            elif each.dim() == 3:  # all experts' weights, [experts, in, out]
                flops += 2 * each.numel() * _experts_a_token(block, len(each)) // len(each)
    return flops


def _experts_a_token(block: nn.Module, experts: int) -> int:
    """The router's number of experts per token; all experts where it states none."""
    says = (getattr(module, "top_k", None) for module in block.modules())
    return next((each for each in says if isinstance(each, int) and 0 < each <= experts), experts)


def _attention_flops(block: nn.Module, config: PreTrainedConfig) -> int:
    """FLOPs of a block's attention scores and weighted sums, per token and per token that it attends to."""
    flops = 0
    heads = getattr(config, "num_attention_heads", 0)
    for module in block.modules() if heads else ():
        inner = [each for each in module.modules() if "Attention" in type(each).__name__]
        if inner == [module]:  # has no attention module inside
            usual = getattr(module, "head_dim", None) or config.hidden_size // heads
            key, value = (getattr(module, name, usual) for name in ("qk_head_dim", "v_head_dim"))
            flops += 2 * heads * (key + value)
    return flops

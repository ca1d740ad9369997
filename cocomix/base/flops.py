"""What a forward pass of a base model costs, by its modules: of any family."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.base.blocks import blocks_of


def forward_flops(model: PreTrainedModel, context: int, layers: int | None = None) -> int:
    """Floating-point operations of a forward pass over `context` tokens, a token.

    Matrix products only, attention over the full square, as `cocomix.modeling.flops_per_token` counts; of experts those
    that a token is given to. A recurrence's own steps, which are no matrix products, are not counted.

    Args:
        layers: only so many blocks; none: the whole model.
    """
    blocks = blocks_of(model)[:layers]
    flops = sum(_matrix_flops(block) + context * _attention_flops(block, model.config) for block in blocks)
    return flops + (2 * model.get_output_embeddings().weight.numel() if layers is None else 0)


def _matrix_flops(block: nn.Module) -> int:
    """Of a block's matrices, a token."""
    flops = 0
    for module in block.modules():
        if isinstance(module, nn.Embedding | nn.Conv1d):
            continue
        for name, each in module.named_parameters(recurse=False):
            if each.dim() == 2 and name == "weight":
                flops += 2 * each.numel()
            elif each.dim() == 3:  # of all experts, [experts, in, out]
                flops += 2 * each.numel() * _experts_a_token(block, len(each)) // len(each)
    return flops


def _experts_a_token(block: nn.Module, experts: int) -> int:
    """What the router says; where it says nothing, all."""
    says = (getattr(module, "top_k", None) for module in block.modules())
    return next((each for each in says if isinstance(each, int) and 0 < each <= experts), experts)


def _attention_flops(block: nn.Module, config: PreTrainedConfig) -> int:
    """Of a block's scores and weighted sums, a token that is attended to."""
    flops = 0
    heads = getattr(config, "num_attention_heads", 0)
    for module in block.modules() if heads else ():
        inner = [each for each in module.modules() if "Attention" in type(each).__name__]
        if inner == [module]:  # no attention within it
            usual = getattr(module, "head_dim", None) or config.hidden_size // heads
            key, value = (getattr(module, name, usual) for name in ("qk_head_dim", "v_head_dim"))
            flops += 2 * heads * (key + value)
    return flops

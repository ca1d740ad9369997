"""The parts of a base model: its list of blocks, and within a block the module at each location.

Works with any Hugging Face causal language model whose blocks are one `nn.ModuleList`. The residual stream after
`layer` blocks is the output of block `layer`, in most families what transformers calls `hidden_states[layer]`; the
other locations are found by the names that model families give to the parts of a block.
"""

from torch import nn
from transformers import PreTrainedModel

from cocomix.params import Location, Site
from cocomix.plumbing.errors import UserError

PARTS: dict[Location, tuple[str, ...]] = {
    # The norm whose input is the stream between attention and MLP.
    "resid_mid": (
        *("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm"),
        *("norm_2", "final_layer_norm", "ffn_norm", "pre_ff_layernorm"),
    ),
    "attn_out": ("post_self_attn_layernorm", "attn", "self_attn", "attention", "self_attention"),
    "mlp_out": ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "feed_forward", "block_sparse_moe"),
}
"""Names of the module at each location; the first that a block has is used.

Where a block normalises what it adds to the residual stream, the output of that norm is what attention or MLP adds.
"""


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of blocks.

    Raises:
        UserError: when the model has no list of `num_hidden_layers` modules.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"{type(model).__name__} has no list of its {count} blocks, so its layers cannot be reached")


def part_of(model: PreTrainedModel, site: Site) -> nn.Module:
    """The module whose output, or for resid_mid whose input, is the activation at `site`.

    Raises:
        UserError: when the model's blocks have no such part.
    """
    block = blocks_of(model)[site.layer - 1]
    if site.location == "resid_post":
        return block
    names = PARTS[site.location]
    if site.location == "attn_out" and hasattr(block, "post_feedforward_layernorm"):
        names = ("post_attention_layernorm",)  # in other families, the norm that reads the stream before the MLP
    for name in names:
        if (part := getattr(block, name, None)) is not None:
            return part
    raise UserError(f"{site}: the blocks of {type(model).__name__} have none of {', '.join(names)}")


def empty_above(model: PreTrainedModel, layers: int) -> None:
    """Empty the weights above the first `layers` blocks, so that they take no memory, for passes that end below them.

    The modules stay: the code of some families reaches into all blocks.
    """
    blocks = blocks_of(model)
    needed = {*blocks[:layers].parameters(), *model.get_input_embeddings().parameters()}  # they may be shared
    for module in (*blocks[layers:], model.get_output_embeddings()):
        for weight in module.parameters():
            if weight not in needed:
                weight.data = weight.data.new_empty(0)


def check_layer(model: PreTrainedModel, layer: int) -> None:
    """Check that the model has a residual stream after `layer` blocks with a block above it.

    Raises:
        UserError: otherwise.
    """
    count = len(blocks_of(model))
    if not 1 <= layer < count:
        raise UserError(f"layer {layer}: the base model has {count} blocks; allowed: 1 to {count - 1}")

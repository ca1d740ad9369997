"""The base model: the frozen language model whose activations the concepts describe.

Works with any Hugging Face causal language model whose blocks are one `nn.ModuleList`. The residual stream after
`layer` blocks is what transformers calls `hidden_states[layer]`; other sites are found by the names that the families
give to the parts of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from cocomix.artifact import Artifact
from cocomix.device import attention, device
from cocomix.errors import UserError
from cocomix.params import Location, Site
from cocomix.runtime import runtime

PARTS: dict[Location, tuple[str, ...]] = {
    # The norm that reads the stream between attention and MLP.
    "resid_mid": ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm"),
    "attn_out": ("post_self_attn_layernorm", "attn", "self_attn", "attention", "self_attention"),
    "mlp_out": ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "feed_forward"),
}
"""What the module at a location is called in a block, the first that is there.

Where a block normalises what it adds to the residual stream, the output of that norm is what attention or MLP adds.
"""


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
        raise UserError(f"layer {layer}: the base model has {count} blocks; allowed: 1 to {count - 1}")


def check_sites(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Check that the base model has all of `sites`.

    Raises:
        UserError: otherwise, naming the site.
    """
    for site in sites:
        check_layer(model, site.layer)
        part_of(model, site)
        if site.location == "resid_mid":
            _check_resid_mid(model, site)


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
        names = ("post_attention_layernorm",)  # elsewhere it is the norm that reads the stream before the MLP
    for name in names:
        if (part := getattr(block, name, None)) is not None:
            return part
    raise UserError(f"{site}: the blocks of {type(model).__name__} have none of {', '.join(names)}")


def activations_at(model: PreTrainedModel, ids: Tensor, sites: Sequence[Site], **inputs: Tensor) -> list[Tensor]:
    """The activations at each of `sites`; nothing above the last of them is computed.

    Args:
        ids: [batch, seq].
        inputs: more inputs of the model, such as `attention_mask` and `position_ids`.

    Returns:
        [batch, seq, d_model] for each site.
    """
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Callable[[Tensor], None]:
        def take(activations: Tensor) -> None:
            found[site] = activations
            if len(found) == len(sites):
                raise _Reached

        return take

    with ExitStack() as hooks:
        for site in sites:
            part, take = part_of(model, site), keep(site)
            if site.location == "resid_mid":
                handle = part.register_forward_pre_hook(lambda _part, args, take=take: take(args[0]))
            else:
                handle = part.register_forward_hook(lambda _part, _args, output, take=take: take(_stream(output)))
            hooks.callback(handle.remove)
        with suppress(_Reached):
            model(input_ids=ids, use_cache=False, **inputs)
    return [found[site] for site in sites]


def documents_apart(model: PreTrainedModel, documents: Tensor) -> dict[str, Tensor]:
    """Inputs of `model` with which the documents of a window do not see each other.

    Args:
        documents: the number of each token's document, [batch, seq].

    Returns:
        `attention_mask` [batch, 1, seq, seq] and `position_ids` [batch, seq], which begin anew with each document.
    """
    seq = documents.shape[1]
    place = torch.arange(seq, device=documents.device)
    allowed = (documents[:, :, None] == documents[:, None, :]) & (place[:, None] >= place)
    # A document's tokens are next to each other: as many as are seen come before.
    position_ids = allowed.sum(2) - 1
    mask = allowed[:, None]
    if model.config._attn_implementation == "eager":  # adds its mask
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
    return {"attention_mask": mask, "position_ids": position_ids}


@torch.no_grad()
def check_documents_apart(model: PreTrainedModel, ids: Tensor, sites: Sequence[Site]) -> None:
    """Check that `documents_apart` does what it says, and nothing else.

    Its mask takes the place of the model's own, with a sliding window; convolutions and recurrences heed no mask.

    Args:
        ids: a window, [1, seq].

    Raises:
        UserError: otherwise.
    """

    def read(ids: Tensor, **inputs: Tensor) -> Tensor:
        return torch.stack(activations_at(model, ids, sites, **inputs))

    half = ids.shape[1] // 2
    second = torch.arange(ids.shape[1], device=ids.device)[None] >= half
    expected = torch.stack([read(ids), torch.cat([read(ids[:, :half]), read(ids[:, half:])], 2)])
    try:
        found = torch.stack([read(ids, **documents_apart(model, each)) for each in (torch.zeros_like(ids), second)])
    except (RuntimeError, TypeError, ValueError):  # as it does not take such a mask
        found = torch.full_like(expected, torch.inf)
    if ((found - expected).norm(dim=-1) > 1e-2 * expected.norm(dim=-1)).any():
        raise UserError(
            f"activations.separate_documents: {type(model).__name__} cannot read documents apart by a mask alone, "
            "as with a sliding window, a convolution or a recurrence; allowed: false"
        )


def residual_at(model: PreTrainedModel, ids: Tensor, layer: int) -> Tensor:
    """The residual stream after `layer` blocks; nothing above is computed.

    Args:
        ids: [batch, seq].

    Returns:
        [batch, seq, d_model].
    """
    (residual,) = activations_at(model, ids, [Site("resid_post", layer)])
    return residual


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
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * context * config.num_attention_heads * head_dim
    return sum(2 * each.numel() for each in matrices) + len(blocks) * attention


@contextmanager
def residual_edited(
    model: PreTrainedModel, layer: int, edit: Callable[[Tensor], Tensor], location: Location = "resid_post"
) -> Iterator[None]:
    """Inside, every forward pass of `model` goes on from `edit(activations)` at `location` of block `layer`.

    To differentiate with respect to the activations alone, let `edit` return a leaf tensor: the frozen blocks
    below then cost no backward pass.
    """
    site = Site(location, layer)
    part = part_of(model, site)
    change: list[Tensor] = []

    def replace(_part: nn.Module, _args: Any, output: Any) -> Any:
        edited = edit(_stream(output))
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def replace_input(_part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        edited = edit(args[0])
        change.append(edited - args[0])
        return (edited, *args[1:])

    def carry(_block: nn.Module, _args: Any, output: Any) -> Any:
        # The stream itself runs past the norm that reads it: it takes the change at the end of the block.
        changed = _stream(output) + change.pop()
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with ExitStack() as hooks:
        if location == "resid_mid":
            hooks.callback(part.register_forward_pre_hook(replace_input).remove)
            hooks.callback(blocks_of(model)[layer - 1].register_forward_hook(carry).remove)
        else:
            hooks.callback(part.register_forward_hook(replace).remove)
        yield


def micro_batch(context: int) -> int:
    """Windows of `context` tokens for one forward pass of a frozen model: `runtime().micro_batch`.

    auto: few enough that what a block makes stays in a CPU's cache; enough to fill a GPU, but not its memory.
    """
    asked = runtime().micro_batch
    return asked if asked != "auto" else max(1, (16384 if device().type == "cuda" else 2048) // context)


class _Reached(BaseException):
    """Leaves a forward pass once all that was asked for is there."""


@torch.no_grad()
def _check_resid_mid(model: PreTrainedModel, site: Site) -> None:
    """Blocks whose attention and MLP are parallel, or normalised before they are added, have another such norm."""
    entered: list[Tensor] = []
    block = blocks_of(model)[site.layer - 1]
    handle = block.register_forward_pre_hook(
        lambda _block, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with ExitStack() as hooks:
        hooks.callback(handle.remove)
        ids = torch.arange(4, device=model.device)[None]
        attention, middle = activations_at(model, ids, [Site("attn_out", site.layer), site])
    if not torch.allclose(entered[0] + attention, middle, rtol=1e-3, atol=1e-3 * float(middle.abs().max())):
        raise UserError(
            f"{site}: a block of {type(model).__name__} does not add attention to the residual stream before its MLP; "
            "choose another location"
        )


def _stream(output: Any) -> Tensor:
    """What a module computes: some families return a tuple that begins with it."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream

"""The base model: the frozen language model whose activations the concepts describe.

Works with any Hugging Face causal language model whose blocks are one `nn.ModuleList`; `cocomix.base.families` checks
it. The residual stream after `layer` blocks is the output of block `layer`, in most families what transformers calls
`hidden_states[layer]`; other sites are found by the names that the families give to the parts of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import NewGELUActivation

from cocomix.params import Location, Site
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.device import attention, device
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime

PARTS: dict[Location, tuple[str, ...]] = {
    # The norm that reads the stream between attention and MLP.
    "resid_mid": (
        *("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm"),
        *("norm_2", "final_layer_norm", "ffn_norm", "pre_ff_layernorm"),
    ),
    "attn_out": ("post_self_attn_layernorm", "attn", "self_attn", "attention", "self_attention"),
    "mlp_out": ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "feed_forward", "block_sparse_moe"),
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
    # All families have the plain attention; without a word, transformers takes sdpa where a family has it.
    options: dict[str, Any] = {"attn_implementation": "eager"} if attention(context) == "eager" else {}
    options |= {"dtype": torch.float32, "use_safetensors": True}
    return prepared(AutoModelForCausalLM.from_pretrained(artifact.verified(), **options))


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
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"{type(model).__name__} has no list of its {count} blocks, so its layers cannot be reached")


def longest(model: PreTrainedModel) -> int | None:
    """The most tokens that `model` says it can read; none: it says nothing, as where it knows no positions."""
    says = (getattr(model.config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((each for each in says if isinstance(each, int) and each > 0), None)


def check_layer(model: PreTrainedModel, layer: int) -> None:
    """Check that there is a residual stream after `layer` blocks with a block above it.

    Raises:
        UserError: otherwise.
    """
    count = len(blocks_of(model))
    if not 1 <= layer < count:
        raise UserError(f"layer {layer}: the base model has {count} blocks; allowed: 1 to {count - 1}")


@torch.no_grad()
def check_sites(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Check that the base model has all of `sites`.

    Raises:
        UserError: otherwise, naming the site.
    """
    for site in sites:
        check_layer(model, site.layer)
        (activations,) = activations_at(model, _few_ids(model), [site])
        if activations.dim() != 3:
            raise UserError(
                f"{site}: {type(model).__name__} has no vector for each token there; choose another location"
            )
        if site.location == "resid_mid" or (site.location != "resid_post" and _both_parts(model, site.layer)):
            _check_added(model, site)


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
            found[site] = activations.clone()  # some families add to it in place

        return take

    with ExitStack() as hooks:
        for site in sites:
            part, take = part_of(model, site), keep(site)
            if site.location == "resid_mid":
                handle = part.register_forward_pre_hook(lambda _part, args, take=take: take(args[0]))
            else:
                handle = part.register_forward_hook(lambda _part, _args, output, take=take: take(stream_of(output)))
            hooks.callback(handle.remove)
        with suppress(_Reached):
            model(input_ids=ids, use_cache=False, **inputs)
    if missing := [str(site) for site in sites if site not in found]:
        raise UserError(f"{', '.join(missing)}: {type(model).__name__} does not run that part of the block")
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
        edited = edit(stream_of(output))
        return _with_stream(output, edited)

    def replace_input(_part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        edited = edit(args[0])
        change.append(edited - args[0])
        return (edited, *args[1:])

    def carry(_block: nn.Module, _args: Any, output: Any) -> Any:
        # The stream itself runs past the norm that reads it: it takes the change at the end of the block.
        return _with_stream(output, stream_of(output) + change.pop())

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


def _few_ids(model: PreTrainedModel) -> Tensor:
    return torch.arange(4, device=model.device)[None]


def _check_added(model: PreTrainedModel, site: Site) -> None:
    """Check that the stream, up to resid_mid or else the block's end, grows by what the parts before that compute.

    Parallel blocks have another norm where resid_mid is looked for; some families' parts add the stream themselves.
    """
    entered: list[Tensor] = []
    block = blocks_of(model)[site.layer - 1]
    handle = block.register_forward_pre_hook(
        lambda _block, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    parts: tuple[Location, ...] = ("attn_out",) if site.location == "resid_mid" else ("attn_out", "mlp_out")
    end: Location = "resid_mid" if site.location == "resid_mid" else "resid_post"
    with ExitStack() as hooks:
        hooks.callback(handle.remove)
        *added, left = activations_at(model, _few_ids(model), [Site(each, site.layer) for each in (*parts, end)])
    growth, computed = left - entered[0], torch.stack(added).sum(0)
    scale = (growth * computed).sum() / computed.square().sum()  # some families have a multiplier
    if not (growth - scale * computed).norm() <= 1e-3 * max(growth.norm(), 1e-2 * left.norm()) or scale <= 0.01:
        raise UserError(
            f"{site}: a block of {type(model).__name__} does not add to the residual stream what its attention and "
            "then its MLP compute; choose another location"
        )


def _both_parts(model: PreTrainedModel, layer: int) -> bool:
    """Whether a block's attention and MLP are known."""
    with suppress(UserError):
        return all(part_of(model, Site(each, layer)) for each in ("attn_out", "mlp_out"))
    return False


def stream_of(output: Any) -> Tensor:
    """What a module computes: some families return a tuple or a list that begins with it."""
    stream: Tensor = output[0] if isinstance(output, tuple | list) else output
    return stream


def _with_stream(output: Any, stream: Tensor) -> Any:
    """`output` of a module, with `stream` in the place of `stream_of(output)`."""
    return type(output)([stream, *output[1:]]) if isinstance(output, tuple | list) else stream

"""Read and edit activations inside a forward pass of a base model, by hooks on the parts of its blocks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.base.blocks import blocks_of, part_of
from cocomix.params import Location, Site
from cocomix.plumbing.errors import UserError


def residual_at(model: PreTrainedModel, ids: Tensor, layer: int) -> Tensor:
    """The residual stream after `layer` blocks; nothing above is computed.

    Args:
        ids: [batch, seq].

    Returns:
        [batch, seq, d_model].
    """
    (residual,) = activations_at(model, ids, [Site("resid_post", layer)])
    return residual


def activations_at(model: PreTrainedModel, ids: Tensor, sites: Sequence[Site], **inputs: Tensor) -> list[Tensor]:
    """The activations at each of `sites`; nothing above the last of them is computed.

    Args:
        ids: [batch, seq].
        inputs: further inputs of the model, such as `attention_mask` and `position_ids`.

    Returns:
        [batch, seq, d_model] for each site.
    """
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Callable[[Tensor], None]:
        def take(activations: Tensor) -> None:
            found[site] = activations
            if len(found) == len(sites):
                raise _Reached
            found[site] = activations.clone()  # some families change it in place

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


@contextmanager
def residual_edited(
    model: PreTrainedModel, layer: int, edit: Callable[[Tensor], Tensor], location: Location = "resid_post"
) -> Iterator[None]:
    """Inside, every forward pass of `model` continues with `edit(activations)` at `location` of block `layer`.

    The edited activations get the type of those that they replace. In a model in bf16, some families have a residual
    stream in fp32.

    To differentiate with respect to the activations alone, let `edit` return a leaf tensor: the frozen blocks
    below then cost no backward pass.
    """
    site = Site(location, layer)
    part = part_of(model, site)
    change: list[Tensor] = []

    def apply(stream: Tensor) -> Tensor:
        return edit(stream).to(stream.dtype)

    def replace(_part: nn.Module, _args: Any, output: Any) -> Any:
        return _with_stream(output, apply(stream_of(output)))

    def replace_input(_part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        edited = apply(args[0])
        change.append(edited - args[0])
        return (edited, *args[1:])

    def carry(_block: nn.Module, _args: Any, output: Any) -> Any:
        # The residual connection bypasses the edited norm, so the change is added to the stream at the block's end.
        return _with_stream(output, stream_of(output) + change.pop())

    with ExitStack() as hooks:
        if location == "resid_mid":
            hooks.callback(part.register_forward_pre_hook(replace_input).remove)
            hooks.callback(blocks_of(model)[layer - 1].register_forward_hook(carry).remove)
        else:
            hooks.callback(part.register_forward_hook(replace).remove)
        yield


def stream_of(output: Any) -> Tensor:
    """The tensor in a module's output: some families return a tuple or a list that begins with it."""
    stream: Tensor = output[0] if isinstance(output, tuple | list) else output
    return stream


def _with_stream(output: Any, stream: Tensor) -> Any:
    """A module's `output`, with `stream_of(output)` replaced by `stream`."""
    return type(output)([stream, *output[1:]]) if isinstance(output, tuple | list) else stream


class _Reached(BaseException):
    """Ends a forward pass once all requested activations are found."""

"""Checks that a base model has the requested activation sites, by running it on a few tokens."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.blocks import blocks_of, check_layer, part_of
from cocomix.base.hooks import activations_at
from cocomix.params import Location, Site
from cocomix.plumbing.errors import UserError


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


def _check_added(model: PreTrainedModel, site: Site) -> None:
    """Check that the stream grows by the outputs of the block's parts, up to resid_mid or else the block's end.

    Parallel blocks have another norm where resid_mid is expected; some families' parts add the stream themselves.
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
    growth, computed = (left - entered[0]).float(), torch.stack(added).sum(0).float()
    scale = (growth * computed).sum() / computed.square().sum()  # some families scale what a part adds
    rounding = torch.finfo(model.dtype).eps * left.float().norm()
    allowed = 1e-3 * max(growth.norm(), 1e-2 * left.float().norm()) + rounding
    if not (growth - scale * computed).norm() <= allowed or scale <= 0.01:
        raise UserError(
            f"{site}: a block of {type(model).__name__} does not add to the residual stream what its attention and "
            "then its MLP compute; choose another location"
        )


def _both_parts(model: PreTrainedModel, layer: int) -> bool:
    """Whether both the attention and the MLP of a block are found."""
    with suppress(UserError):
        return all(part_of(model, Site(each, layer)) for each in ("attn_out", "mlp_out"))
    return False


def _few_ids(model: PreTrainedModel) -> Tensor:
    return torch.arange(4, device=model.device)[None]

"""Products with a few rows of a matrix, without a [batch, k, d] or a [batch, latents] tensor.

A latent that is not among a position's k has no value and no gradient, so encoder and decoder need only k rows a
position. PyTorch's embedding-bag kernels are those products: the bag of rows `indices`, weighted by `values`, is the
decoder; their backward passes are the encoder's forward pass and its gradient. Two of the kernels are private to
PyTorch: they are named here and nowhere else, and where they do not exist the dense products stand in.
"""

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cocomix.modeling.kernels import GROUP
from cocomix.plumbing.device import bf16

FEW = 512
"""Scores of a position whose largest are found in one step (measured on a CPU: best from 1024 to 32768 latents)."""

SPARSE = 1 / 8
"""Share of the rows up to which their products alone are faster (measured: 1/11 to 1/8, at 1024 and 4096 latents)."""

SAMPLE = 65_536
"""About how many scores tell where the largest of a batch begin."""

_SUM = 0
"""The kernels' number for bags that are summed."""


class Chosen(NamedTuple):
    """Rows of a matrix that were chosen for each `x`, a different number for each."""

    indices: Tensor
    """int64 [n, width]; the places that are not taken hold any row."""
    taken: Tensor
    """bool [n, width]."""


@torch.no_grad()
def top_indices(x: Tensor, weight: Tensor, bias: Tensor, k: int, *, by_size: bool = False) -> Tensor:
    """The rows of `weight` with the k largest `x @ weight.T + bias`, in no order: int64 [n, k].

    Where fewer than k are positive, the others may be any. The products are bf16 where the hardware has it: only rows
    that are about equal to the k-th can change places.

    Args:
        x: [n, d]. weight: [latents, d]. bias: [latents].
        by_size: compare absolute values.
    """
    scores = _scores(x, weight, bias)
    return largest(scores.abs_() if by_size else scores, k)


@torch.no_grad()
def batch_top_indices(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Chosen:
    """The rows of `weight` with the n * k largest `x @ weight.T + bias` of the whole batch, for each `x` its own.

    Compared in bf16 as in `top_indices`; all that are then equal to the last are chosen, so that there may be more.

    Args:
        x: [n, d]. weight: [latents, d]. bias: [latents].
    """
    scores = _scores(x, weight, bias)
    return _padded(scores >= kth_largest(scores.flatten(), len(x) * k), least=k)


@torch.no_grad()
def indices_above(x: Tensor, weight: Tensor, bias: Tensor, *, least: int) -> Chosen:
    """The rows of `weight` with `x @ weight.T + bias` above 0.

    In fp32: where values are cut at a threshold, rounding would change how many there are.

    Args:
        x: [n, d]. weight: [latents, d]. bias: [latents].
        least: places for each `x` at least.
    """
    return _padded(torch.addmm(bias, x, weight.T) > 0, least)


def dots(x: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """The dot products of each `x` with its own rows of `weight`: [n, k].

    Args:
        x: [n, d]. weight: [latents, d]. indices: int64 [n, k].
    """
    if not pays(indices, weight):
        return (x @ weight.T).gather(1, indices)
    values: Tensor = _Dots.apply(x, weight, indices)  # type: ignore[no-untyped-call]
    return values


def weighted_sum(values: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """The sums of rows of `weight`, each with its value: [n, d].

    Args:
        values: [n, k]. weight: [latents, d]. indices: int64 [n, k].
    """
    if not pays(indices, weight):
        return values.new_zeros(len(values), len(weight)).scatter_add(1, indices, values) @ weight
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of `scores` [n].

    Sought among those above a bound that a sample gives: several times as fast as among all.
    """
    step = max(1, len(scores) // SAMPLE) | 1  # odd, so as not to meet the same columns of a matrix in every row
    sample = scores[::step]
    rank = min(len(sample), k * 5 // (step * 4) + 1)
    above = scores[scores >= sample.kthvalue(len(sample) - rank + 1).values]
    if len(above) < k:
        above = scores
    return above.kthvalue(len(above) - k + 1).values


def largest(scores: Tensor, k: int) -> Tensor:
    """The places of the k largest scores of each row, in no order: int64 [n, k].

    As `kernels.top_k`, whose scores may be negative; here, where fewer than k are positive, the others may be any,
    which lets integers be compared, in several steps.

    Args:
        scores: [n, latents].
    """
    n, latents = scores.shape
    columns = latents // GROUP
    if scores.device.type == "cpu" and scores.dtype == torch.bfloat16:
        scores = scores.view(torch.int16)  # positive numbers compare as their bits do, in a quarter of the time
    if latents <= FEW or latents % GROUP or columns < k:
        return _select(scores, k)
    grid = scores.view(n, GROUP, columns)
    best = largest(grid.amax(1), k)
    candidates = grid.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
    chosen = _select(candidates, k)
    row = chosen // k
    return best.gather(1, chosen - row * k) + row * columns


def partial_sums(values: Tensor, weight: Tensor, indices: Tensor, ends: list[int]) -> Tensor:
    """As `weighted_sum`, in parts: of the rows before the first end, from there to the second, and so on.

    Args:
        values: [n, k]. weight: [latents, d]. indices: int64 [n, k]. ends: ascending, at most latents.

    Returns:
        [n, ends, d].
    """
    if not has_kernels(weight.device):
        upto = [weighted_sum(values * (indices < end), weight, indices) for end in ends]
        return torch.stack([upto[0], *(high - low for low, high in itertools.pairwise(upto))], 1)
    n, k = indices.shape
    bounds = torch.tensor(ends, device=indices.device)
    parts, order = torch.bucketize(indices, bounds, right=True).sort(1)
    sizes = F.one_hot(parts, len(ends) + 1).sum(1)
    starts = torch.arange(0, n * k, k, device=indices.device)[:, None] + sizes.cumsum(1) - sizes
    sums = F.embedding_bag(
        indices.gather(1, order).flatten(),
        weight,
        starts.flatten(),
        mode="sum",
        per_sample_weights=values.gather(1, order).flatten(),
    )
    return sums.view(n, len(ends) + 1, -1)[:, :-1]


def _select(scores: Tensor, k: int) -> Tensor:
    """As `largest`, in one step."""
    latents = scores.shape[1]
    if scores.dtype != torch.int16 or latents > 2**16:
        return scores.topk(k, dim=1, sorted=False).indices
    # NumPy selects among integers with vector instructions, in a quarter of topk's time: scores, their places below.
    keys = scores.int() << 16
    keys |= torch.arange(latents, dtype=torch.int32)
    keys.numpy().partition(latents - k)
    return keys[:, latents - k :].long() & 0xFFFF


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if bf16():
        x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    return torch.addmm(bias, x, weight.T)


def _padded(chosen: Tensor, least: int) -> Chosen:
    """The columns at which each row of `chosen` [n, latents] is true, to the left."""
    rows, columns = chosen.nonzero().unbind(1)
    counts = rows.bincount(minlength=len(chosen))
    places = torch.arange(max(int(counts.max()), least), device=chosen.device)
    taken = places < counts[:, None]
    # Places that are not taken hold many rows, so that no single one collects all of their (zero) gradients.
    return Chosen(places.expand_as(taken).masked_scatter(taken, columns), taken)


def pays(indices: Tensor, weight: Tensor) -> bool:
    """Whether the products with some rows take less time than those with the whole matrix, where both can be had."""
    return indices.shape[1] <= len(weight) * SPARSE and has_kernels(weight.device)


def has_kernels(device: torch.device) -> bool:
    """Whether this PyTorch has the embedding-bag kernels for a device."""
    kernels = ("_embedding_bag_per_sample_weights_backward", "_embedding_bag_dense_backward")
    return device.type in ("cpu", "cuda") and all(hasattr(torch.ops.aten, kernel) for kernel in kernels)


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        starts, bag_of = _bags(indices)
        values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x.contiguous(), weight, indices.flatten(), starts, bag_of, _SUM
        )
        return values.view(indices.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight, indices = ctx.saved_tensors
        grad_x = weighted_sum(grad, weight, indices) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            starts, bag_of = _bags(indices)
            sizes = torch.full_like(starts, indices.shape[1])
            grad_weight = torch.ops.aten._embedding_bag_dense_backward(
                x.contiguous(), indices.flatten(), bag_of, sizes, starts, len(weight), False, _SUM, grad.flatten()
            )
        return grad_x, grad_weight, None


def _bags(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Where each bag starts, and the bag of each index."""
    n, k = indices.shape
    bags = torch.arange(n, device=indices.device)
    return bags * k, bags.repeat_interleave(k)

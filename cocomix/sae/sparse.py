"""Sparse matrix products with k rows per position, without a [batch, k, d] or a [batch, latents] tensor.

A latent that is not among a position's k has no value and no gradient, so encoder and decoder need only k rows per
position. PyTorch's embedding-bag kernels compute these products: the bag of rows `indices`, weighted by `values`, is
the decoder; their backward passes are the encoder's forward pass and its gradient. Two of the kernels are private to
PyTorch. They are used in this module only, and dense products replace them where they do not exist.
"""

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cocomix.plumbing.device import bf16

GROUP = 8
"""Scores per group that are first compared by their maximum (measured: 8 is best from 1024 to 32768 latents)."""

FEW = 512
"""Up to this many scores, the top k is selected in one step (measured on a CPU: best from 1024 to 32768 latents)."""

SPARSE = 1 / 8
"""Share of the rows up to which sparse products are faster (measured: 1/11 to 1/8, at 1024 and 4096 latents)."""

SAMPLE = 65_536
"""Approximate size of the sample of scores that bounds the k-th largest of a batch from below."""

_SUM = 0
"""The kernels' code for the mode sum."""


class Chosen(NamedTuple):
    """Rows of a matrix that were selected for each `x`, a varying number, padded to the same width."""

    indices: Tensor
    """int64 [n, width]; entries that are not taken hold arbitrary rows."""
    taken: Tensor
    """bool [n, width]."""


@torch.no_grad()
def top_indices(x: Tensor, weight: Tensor, bias: Tensor, k: int, *, by_size: bool = False) -> Tensor:
    """The rows of `weight` with the k largest `x @ weight.T + bias`, unordered: int64 [n, k].

    Where fewer than k scores are positive, the other rows are arbitrary. The products are in bf16 where the hardware
    supports it, which affects only rows whose scores are about equal to the k-th.

    Args:
        x: [n, d]. weight: [latents, d]. bias: [latents].
        by_size: compare absolute values.
    """
    scores = _scores(x, weight, bias)
    return largest(scores.abs_() if by_size else scores, k)


@torch.no_grad()
def batch_top_indices(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Chosen:
    """For each `x`, the rows of `weight` that are among the n * k largest `x @ weight.T + bias` of the whole batch.

    Compared in bf16 as in `top_indices`; ties with the last are all selected, so the result may have more.

    Args:
        x: [n, d]. weight: [latents, d]. bias: [latents].
    """
    scores = _scores(x, weight, bias)
    return _padded(scores >= kth_largest(scores.flatten(), len(x) * k), least=k)


@torch.no_grad()
def indices_above(x: Tensor, weight: Tensor, bias: Tensor, *, least: int) -> Chosen:
    """The rows of `weight` with `x @ weight.T + bias` above 0.

    Computed in fp32: rounding would move values across their thresholds and change their number.

    Args:
        x: [n, d]. weight: [latents, d]. bias: [latents].
        least: least width of the result.
    """
    return _padded(torch.addmm(bias, x, weight.T) > 0, least)


def dots(x: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Dot products of each `x` with its own rows of `weight`: [n, k].

    Args:
        x: [n, d]. weight: [latents, d]. indices: int64 [n, k].
    """
    if not pays(indices, weight):
        return (x @ weight.T).gather(1, indices)
    values: Tensor = _Dots.apply(x, weight, indices)  # type: ignore[no-untyped-call]
    return values


def weighted_sum(values: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Sums of rows of `weight`, weighted by `values`: [n, d].

    Args:
        values: [n, k]. weight: [latents, d]. indices: int64 [n, k].
    """
    if not pays(indices, weight):
        return values.new_zeros(len(values), len(weight)).scatter_add(1, indices, values) @ weight
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of `scores` [n].

    It is selected among the scores above a lower bound from a sample, which is several times as fast as among all.
    """
    step = max(1, len(scores) // SAMPLE) | 1  # odd, so as not to sample the same columns of a matrix in every row
    sample = scores[::step]
    rank = min(len(sample), k * 5 // (step * 4) + 1)
    above = scores[scores >= sample.kthvalue(len(sample) - rank + 1).values]
    if len(above) < k:
        above = scores
    return above.kthvalue(len(above) - k + 1).values


def largest(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores of each row, unordered: int64 [n, k].

    Where fewer than k are positive, the others are arbitrary, so that bf16 scores can be compared as integers, which
    is faster. `modeling.kernels.top_k` is the same for scores that may be negative. In two steps: the k largest are in
    the k columns with the largest maxima of a [GROUP, latents / GROUP] grid.

    Args:
        scores: [n, latents].
    """
    n, latents = scores.shape
    columns = latents // GROUP
    if scores.device.type == "cpu" and scores.dtype == torch.bfloat16:
        scores = scores.view(torch.int16)  # positive numbers compare like their bits, in a quarter of the time
    if latents <= FEW or latents % GROUP or columns < k:
        return _select(scores, k)
    grid = scores.view(n, GROUP, columns)
    best = largest(grid.amax(1), k)
    candidates = grid.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
    chosen = _select(candidates, k)
    row = chosen // k
    return best.gather(1, chosen - row * k) + row * columns


def partial_sums(values: Tensor, weight: Tensor, indices: Tensor, ends: list[int]) -> Tensor:
    """`weighted_sum` in parts: over the rows before the first end, from the first to the second end, and so on.

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
    """`largest` in one step."""
    latents = scores.shape[1]
    if scores.dtype != torch.int16 or latents > 2**16:
        return scores.topk(k, dim=1, sorted=False).indices
    # NumPy partitions integers with vector instructions, in a quarter of topk's time. A key holds the score in its high
    # bits and the index in its low bits.
    keys = scores.int() << 16
    keys |= torch.arange(latents, dtype=torch.int32)
    keys.numpy().partition(latents - k)
    return keys[:, latents - k :].long() & 0xFFFF


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if bf16():
        x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    return torch.addmm(bias, x, weight.T)


def _padded(chosen: Tensor, least: int) -> Chosen:
    """The columns at which each row of `chosen` [n, latents] is true, left-aligned."""
    rows, columns = chosen.nonzero().unbind(1)
    counts = rows.bincount(minlength=len(chosen))
    places = torch.arange(max(int(counts.max()), least), device=chosen.device)
    taken = places < counts[:, None]
    # Entries that are not taken hold different rows, so that no single row collects all of their (zero) gradients.
    return Chosen(places.expand_as(taken).masked_scatter(taken, columns), taken)


def pays(indices: Tensor, weight: Tensor) -> bool:
    """Whether sparse products are available and faster than dense ones."""
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
    """The start of each bag, [n], and the bag of each index, [n * k]."""
    n, k = indices.shape
    bags = torch.arange(n, device=indices.device)
    return bags * k, bags.repeat_interleave(k)

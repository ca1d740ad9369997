"""Part `kernels`: every kernel against its plain formulation, in value and gradient, on the device and against the CPU.

A difference is the largest one divided by the largest number of the tensor, over all values and gradients of a case.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, Sizes, settings
from cocomix.attribution.labelling import cross_entropy_slope
from cocomix.modeling.kernels import linear_cross_entropy, predict, top_k
from cocomix.plumbing.device import autocast, device
from cocomix.plumbing.runtime import runtime
from cocomix.sae.sparse import (
    batch_top_indices,
    dots,
    indices_above,
    kth_largest,
    partial_sums,
    top_indices,
    weighted_sum,
)
from cocomix.training.distillation import fused_distillation_losses
from cocomix.training.losses import concept_loss, distillation_loss, fused_next_token_loss, next_token_loss

Tensors = tuple[Tensor, ...]
LABELS = 4
ALLOWED, ALLOWED_BF16 = 1e-3, 5e-2
"""Differences up to these are rounding: of sums over tens of thousands of fp32 products, and of bf16."""


class Case(NamedTuple):
    """A kernel, its plain formulation, and their inputs on the CPU: [rows, ...] each, but for weights."""

    ours: Callable[..., Tensors]
    plain: Callable[..., Tensors]
    inputs: Tensors
    in_bf16: bool = False
    """Whether to compare it under autocast too; not where rounding decides which numbers are chosen."""


def measurements(setting: Setting) -> dict[str, Measurement]:
    torch.set_num_threads(runtime().cores)  # nothing is timed here
    return {name: partial(differences, make, setting.sizes) for name, make in CASES.items()}


def differences(make: Callable[[Sizes, int], Case], sizes: Sizes) -> dict[str, object]:
    """Differences of the kernel from its formulation, and of the device from the CPU; and whether all are small."""
    torch.manual_seed(0)
    with settings(precision="fp32"):
        case = make(sizes, sizes.kernel_rows)
        plain = outcome(case.plain, case.inputs, device())
        found = {"plain": difference(outcome(case.ours, case.inputs, device()), plain)}
        few = make(sizes, sizes.cpu_rows)
        cpu = torch.device("cpu")
        found["cpu"] = difference(outcome(few.ours, few.inputs, device()), outcome(few.ours, few.inputs, cpu))
    allowed = dict.fromkeys(found, ALLOWED)
    if case.in_bf16:
        with settings(precision="bf16"), autocast():
            found["bf16"] = difference(outcome(case.ours, case.inputs, device()), plain)
        allowed["bf16"] = ALLOWED_BF16
    return {**found, "ok": all(found[name] <= allowed[name] for name in found)}


def outcome(function: Callable[..., Tensors], inputs: Tensors, where: torch.device) -> list[Tensor]:
    """The values of a function, and the gradients of a sum of them by its inputs, all on the CPU."""
    given = [each.to(where).requires_grad_(each.is_floating_point()) for each in inputs]
    values = function(*given)
    slopes = [value for value in values if value.requires_grad]
    wanted = [each for each in given if each.requires_grad] if slopes else []
    total = sum((value.float() * _weights(value)).sum() for value in slopes)
    gradients = torch.autograd.grad(total, wanted, materialize_grads=True) if slopes else ()  # type: ignore[arg-type]
    return [each.detach().cpu().double() for each in (*values, *gradients)]


def _weights(value: Tensor) -> Tensor:
    """Other numbers for each of a value's, so that an exchange of two is found."""
    return torch.linspace(0.5, 1.5, value.numel(), device=value.device).view_as(value)


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference relative to the largest number of a tensor, over pairs of tensors."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def _scored(sizes: Sizes, rows: int) -> Tensors:
    """Hidden states, a head's weight and bias, and labels, of which some are missing."""
    d, classes = sizes.student_blocks[0], sizes.latents
    labels = torch.randint(classes, (rows, LABELS))
    labels = labels.masked_fill(torch.rand(rows, LABELS) < 0.2, -1)
    return torch.randn(rows, d), torch.randn(classes, d) / d**0.5, torch.randn(classes), labels


def _predict(sizes: Sizes, rows: int) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensors:
        found = predict(x, weight, bias, labels, sizes.k)
        return found.loss, found.strengths.float().sort().values

    def plain(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensors:
        scores = F.linear(x, weight, bias)
        return concept_loss(scores[None], labels[None]), scores.topk(sizes.k).values.sort().values

    return Case(ours, plain, _scored(sizes, rows))


def _predict_weighted(sizes: Sizes, rows: int) -> Case:
    x, weight, bias, labels = _scored(sizes, rows)
    shares = torch.rand(labels.shape).masked_fill(labels < 0, 0)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return (predict(x, weight, bias, labels.to(x.device), 0, shares.to(x.device)).loss,)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        logs = F.linear(x, weight, bias).log_softmax(-1)
        return (-(logs.gather(1, labels.to(x.device).clamp(min=0)) * shares.to(x.device)).sum(),)

    return Case(ours, plain, (x, weight, bias), in_bf16=True)


def _linear_cross_entropy(sizes: Sizes, rows: int) -> Case:
    x, weight, _, labels = _scored(sizes, rows)

    def plain(x: Tensor, weight: Tensor, labels: Tensor) -> Tensors:
        return (F.cross_entropy(x @ weight.T, labels, ignore_index=-1, reduction="sum"),)

    return Case(lambda *inputs: (linear_cross_entropy(*inputs),), plain, (x, weight, labels[:, 0]), in_bf16=True)


def _windows(sizes: Sizes, rows: int) -> Tensors:
    """Hidden states of windows, a head, and token ids."""
    d = sizes.student_blocks[0]
    windows = max(1, rows // sizes.context)
    ids = torch.randint(sizes.vocab, (windows, sizes.context))
    return torch.randn(windows, sizes.context, d), torch.randn(sizes.vocab, d) / d**0.5, ids


def _next_token_loss(sizes: Sizes, rows: int) -> Case:
    return Case(
        lambda hidden, head, ids: (fused_next_token_loss(hidden, head, ids),),
        lambda hidden, head, ids: (next_token_loss(hidden @ head.T, ids),),
        _windows(sizes, rows // 2),
        in_bf16=True,
    )


def _distillation(sizes: Sizes, rows: int) -> Case:
    hidden, head, ids = _windows(sizes, rows // 8)
    target, weight = torch.randn(*ids.shape, sizes.vocab), torch.tensor(0.3)

    def ours(hidden: Tensor, head: Tensor) -> Tensors:
        where = hidden.device
        tokens, divergence = fused_distillation_losses(hidden, head, ids.to(where), target.to(where), weight.to(where))
        return tokens, divergence

    def plain(hidden: Tensor, head: Tensor) -> Tensors:
        logits = hidden @ head.T
        tokens = next_token_loss(logits, ids.to(hidden.device))
        divergence = distillation_loss(logits[:, :-1], target.to(hidden.device)[:, :-1])
        # As ours: the first has the gradient of both, and its own value.
        return tokens + weight.to(hidden.device) * (divergence - divergence.detach()), divergence.detach()

    return Case(ours, plain, (hidden, head), in_bf16=True)


def _slope(sizes: Sizes, rows: int) -> Case:
    _, _, ids = _windows(sizes, rows // 8)

    def plain(logits: Tensor, ids: Tensor) -> Tensors:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            return torch.autograd.grad(next_token_loss(leaf, ids), leaf)

    def ours(logits: Tensor, ids: Tensor) -> Tensors:
        return (cross_entropy_slope(logits.detach(), ids),)

    return Case(ours, plain, (torch.randn(*ids.shape, sizes.vocab), ids))


def _top_k(sizes: Sizes, rows: int) -> Case:
    def ours(scores: Tensor) -> Tensors:
        strengths, indices = top_k(scores, sizes.k)
        return strengths.sort().values, scores.gather(1, indices).sort().values

    def plain(scores: Tensor) -> Tensors:
        strengths = scores.topk(sizes.k).values.sort().values
        return strengths, strengths

    return Case(ours, plain, (torch.randn(rows, sizes.latents),))


def _rows_of_weight(sizes: Sizes, rows: int) -> Tensors:
    """Activations, a dictionary, values and indices of rows of it."""
    d = sizes.teacher_blocks[0]
    indices = torch.randint(sizes.latents, (rows, sizes.k))
    return torch.randn(rows, d), torch.randn(sizes.latents, d) / d**0.5, torch.randn(rows, sizes.k), indices


def _dots(sizes: Sizes, rows: int) -> Case:
    x, weight, _, indices = _rows_of_weight(sizes, rows)
    return Case(
        lambda x, weight, indices: (dots(x, weight, indices),),
        lambda x, weight, indices: ((x @ weight.T).gather(1, indices),),
        (x, weight, indices),
    )


def _dense(values: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    return values.new_zeros(len(values), len(weight)).scatter_add(1, indices, values)


def _weighted_sum(sizes: Sizes, rows: int) -> Case:
    _, weight, values, indices = _rows_of_weight(sizes, rows)
    return Case(
        lambda *inputs: (weighted_sum(*inputs),),
        lambda values, weight, indices: (_dense(values, weight, indices) @ weight,),
        (values, weight, indices),
    )


def _partial_sums(sizes: Sizes, rows: int) -> Case:
    _, weight, values, indices = _rows_of_weight(sizes, rows // 4)
    ends = [sizes.latents // 8, sizes.latents // 2, sizes.latents]

    def plain(values: Tensor, weight: Tensor, indices: Tensor) -> Tensors:
        dense = _dense(values, weight, indices)
        return (torch.stack([dense[:, a:b] @ weight[a:b] for a, b in itertools.pairwise([0, *ends])], 1),)

    return Case(
        lambda values, weight, indices: (partial_sums(values, weight, indices, ends),), plain, (values, weight, indices)
    )


def _chosen(sizes: Sizes, rows: int) -> Iterator[Tensor]:
    x, weight, _, _ = _rows_of_weight(sizes, rows)
    yield from (x, weight, torch.randn(sizes.latents))


def _top_indices(sizes: Sizes, rows: int) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return ((x @ weight.T + bias).gather(1, top_indices(x, weight, bias, sizes.k)).sort().values,)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return ((x @ weight.T + bias).topk(sizes.k).values.sort().values,)

    return Case(ours, plain, tuple(_chosen(sizes, rows)))


def _batch_top_indices(sizes: Sizes, rows: int) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        found = batch_top_indices(x, weight, bias, sizes.k)
        return ((x @ weight.T + bias).gather(1, found.indices)[found.taken].sum(),)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return ((x @ weight.T + bias).flatten().topk(len(x) * sizes.k).values.sum(),)

    return Case(ours, plain, tuple(_chosen(sizes, rows)))


def _indices_above(sizes: Sizes, rows: int) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        found = indices_above(x, weight, bias - 3, least=sizes.k)
        return ((x @ weight.T + bias - 3).gather(1, found.indices)[found.taken].sum(),)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return ((x @ weight.T + bias - 3).relu().sum(),)

    return Case(ours, plain, tuple(_chosen(sizes, rows)))


def _kth_largest(sizes: Sizes, rows: int) -> Case:
    return Case(
        lambda scores: (kth_largest(scores.detach().flatten(), rows * sizes.k),),
        lambda scores: (scores.detach().flatten().topk(rows * sizes.k).values[-1],),
        (torch.randn(rows, sizes.latents),),
    )


CASES: dict[str, Callable[[Sizes, int], Case]] = {
    "modeling.kernels.predict": _predict,
    "modeling.kernels.predict with weights": _predict_weighted,
    "modeling.kernels.linear_cross_entropy": _linear_cross_entropy,
    "modeling.kernels.top_k": _top_k,
    "training.losses.fused_next_token_loss": _next_token_loss,
    "training.distillation.fused_distillation_losses": _distillation,
    "attribution.labelling.cross_entropy_slope": _slope,
    "sae.sparse.dots": _dots,
    "sae.sparse.weighted_sum": _weighted_sum,
    "sae.sparse.partial_sums": _partial_sums,
    "sae.sparse.top_indices": _top_indices,
    "sae.sparse.batch_top_indices": _batch_top_indices,
    "sae.sparse.indices_above": _indices_above,
    "sae.sparse.kth_largest": _kth_largest,
}

"""Predictions over many classes, and their cross-entropy, without a tensor of [positions, classes].

Rows are scored a chunk at a time. The loss is a sum, so its gradient is known up to one factor once the scores are
known: the forward pass computes the gradient and drops the scores, and the backward pass multiplies by the factor. This
takes the three matrix products of the plain formulation, without recomputation. Second derivatives are not supported.
torch's own function of this kind takes longer on a CPU (docs/log.md, 31).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 2**26
"""Scores held in memory at once: 128 MB in bf16."""

BLOCK = 2**18
"""Numbers per elementwise operation on a CPU: 1 MB of fp32, which fits a core's cache."""

GROUP = 8
"""Scores per group that are first compared by their maximum (measured: 8 is best from 1024 to 32768 classes)."""


def chunks(rows: int, classes: int) -> list[slice]:
    """Split `rows` rows into about equal chunks of at most `CHUNK` scores, `classes` per row, at least a row each."""
    count = max(1, math.ceil(rows * classes / CHUNK))
    size = math.ceil(rows / count)
    return [slice(start, start + size) for start in range(0, rows, size)]


class Prediction(NamedTuple):
    """The result of `predict`."""

    loss: Tensor
    """Sum over the rows of the weighted cross-entropy to the row's labels, float32 []."""
    strengths: Tensor
    """The k largest scores of each row, unordered: [n, k]."""
    indices: Tensor
    """Their classes: int64 [n, k]."""


def predict(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, k: int, label_weights: Tensor | None = None
) -> Prediction:
    """Score classes by `x @ weight.T + bias`; return the largest scores and the cross-entropy to labels.

    A row's loss is sum_j w_j CE(z, i_j) = sum_j w_j (logsumexp(z) - z_i_j) over its labels i_j, which may repeat.

    Args:
        x: [n, d]. weight: [classes, d]. bias: [classes].
        labels: int64 [n, m], negative: no label.
        k: number of largest scores to return.
        label_weights: w, float32 [n, m], at least 0, and 0 where there is no label. None: a row's labels share a
            weight of 1 equally.
    """
    return Prediction(*_predict(x, weight, bias, labels, label_weights, k))


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The summed cross-entropy of the scores `x @ weight.T`, float32 [].

    Args:
        x: [n, d]. weight: [classes, d].
        labels: int64 [n], negative: no label.
    """
    return _predict(x, weight, None, labels[:, None], None, 0)[0]


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their indices, unordered: [n, k] and int64 [n, k].

    In two steps, up to twice as fast as one: the k largest are in the k columns with the largest maxima of a
    [GROUP, classes / GROUP] grid.

    Args:
        scores: [n, classes].
    """
    n, classes = scores.shape
    columns = classes // GROUP
    if classes % GROUP or not 0 < k <= columns:
        values, places = scores.topk(k, sorted=False)
        return values, places
    grid = scores.view(n, GROUP, columns)
    best = grid.amax(1).topk(k, sorted=False).indices
    candidates = grid.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
    values, chosen = candidates.topk(k, sorted=False)
    row = chosen // k
    return values, best.gather(1, chosen - row * k) + row * columns


def _predict(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, label_weights: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the largest scores and their indices."""
    differentiate = torch.is_grad_enabled()
    found: tuple[Tensor, Tensor, Tensor]
    found = _Predict.apply(x, weight, bias, labels, label_weights, k, differentiate)  # type: ignore[no-untyped-call]
    return found


class _Predict(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        label_weights: Tensor | None,
        k: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, classes, dtype = len(x), len(weight), matmul_dtype(x)
        loss = torch.zeros((), device=x.device)
        strengths = x.new_empty(n, k)
        indices = labels.new_empty(n, k)
        grad_x, grad_weight = x.new_empty(x.shape if differentiate else 0), None
        grad_bias = None if bias is None else torch.zeros_like(bias)
        weight_cast, bias_cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        for some in chunks(n, classes):
            mass, shares = _weights(labels[some], None if label_weights is None else label_weights[some])
            x_cast = x[some].to(dtype)
            scores = F.linear(x_cast, weight_cast, bias_cast)
            if k:
                strengths[some], indices[some] = top_k(scores, k)
            loss += _to_slopes(scores, labels[some], mass, shares)
            if differentiate:
                grad_x[some] = (scores @ weight_cast) * mass
                part = scores.T @ (x_cast * mass).to(dtype)
                grad_weight = part.to(weight.dtype) if grad_weight is None else grad_weight.add_(part)
                if grad_bias is not None:
                    grad_bias += mass.squeeze(-1).to(dtype) @ scores
        ctx.mark_non_differentiable(indices)
        if differentiate:
            ctx.save_for_backward(x, weight, indices, grad_x, grad_weight, grad_bias)
        return loss, strengths, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_strengths: Tensor, _indices: None) -> tuple[Tensor | None, ...]:
        x, weight, indices, grad_x, grad_weight, grad_bias = ctx.saved_tensors
        grad_x.mul_(grad_loss)
        grad_weight.mul_(grad_loss)
        if grad_bias is not None:
            grad_bias.mul_(grad_loss)
        k = indices.shape[1]
        if k:
            grad_x += F.embedding_bag(indices, weight, per_sample_weights=grad_strengths.to(weight.dtype), mode="sum")
            grad_bias.index_add_(0, indices.flatten(), grad_strengths.flatten().to(weight.dtype))
            rows = rows_at_once(len(x), k * x.shape[1], x.device)
            for xs, slopes, classes in zip(
                *(torch.split(each, rows) for each in (x, grad_strengths, indices)), strict=True
            ):
                outer = (slopes[:, :, None] * xs[:, None]).flatten(0, 1).to(weight.dtype)
                grad_weight.index_add_(0, classes.flatten(), outer)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _weights(labels: Tensor, label_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weight of each row, [n, 1], and the shares of its labels in it, [n, m]; see `predict`."""
    if label_weights is None:
        valid = labels >= 0
        return valid.any(-1, keepdim=True), valid / valid.sum(-1, keepdim=True).clamp(min=1)
    mass = label_weights.sum(-1, keepdim=True)
    return mass, label_weights / mass.clamp(min=torch.finfo(mass.dtype).tiny)


def _to_slopes(scores: Tensor, labels: Tensor, mass: Tensor, shares: Tensor) -> Tensor:
    """Replace scores, in place, by the gradient of each row's loss, and return the loss.

    The gradient is that of a row of weight 1: the caller multiplies by `mass`.

    Args:
        scores: [n, classes]. labels: int64 [n, m], negative: no label.
        mass, shares: see `_weights`.
    """
    loss = torch.zeros((), device=scores.device)
    rows = rows_at_once(len(scores), scores.shape[1], scores.device)
    split = (torch.split(each, rows) for each in (scores, labels, mass, shares))
    for block, wanted, weight, share in zip(*split, strict=True):
        wanted = wanted.clamp(min=0)
        probabilities, log_sum = softmax(block)
        mean = (block.gather(-1, wanted) * share).sum(-1)
        loss += ((log_sum - mean) * weight.squeeze(-1)).sum()
        block.copy_(probabilities.scatter_add_(-1, wanted, -share))
    return loss


def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of scores [n, classes] and their logsumexp [n], in float32."""
    probabilities = scores.softmax(-1, dtype=torch.float32)
    # Derived from the largest score, whose probability cannot underflow.
    return probabilities, scores.amax(-1).float() - probabilities.amax(-1).log()


def rows_at_once(rows: int, width: int, device: torch.device) -> int:
    """How many of `rows` rows of `width` numbers to process at once."""
    return max(1, min(rows, (BLOCK if device.type == "cpu" else CHUNK) // width))


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product with `x`, under autocast if enabled."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

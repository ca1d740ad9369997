from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cocomix.modeling import kernels
from cocomix.modeling.kernels import (
    Prediction,
    linear_cross_entropy,
    predict,
    top_k,
)


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    downstream: Tensor
    """What the largest scores are used for: a weight for each class."""

    def differentiable(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x.requires_grad_(), self.weight.requires_grad_(), self.bias.requires_grad_()


def inputs(seed: int, missing: float, n: int = 7, d: int = 6, classes: int = 24, scale: float = 1.0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, 3), generator=generator)
    return Inputs(
        scale * torch.randn(n, d, generator=generator),
        torch.randn(classes, d, generator=generator),
        torch.randn(classes, generator=generator),
        labels.masked_fill(torch.rand(labels.shape, generator=generator) < missing, -1),
        torch.randn(classes, generator=generator),
    )


def plain(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, k: int) -> Prediction:
    """Paper Eq. 2, position by position."""
    scores = F.linear(x, weight, bias)
    strengths, indices = scores.topk(k)
    loss = torch.zeros(())
    for z, wanted in zip(scores.float(), labels, strict=True):
        kept = wanted[wanted >= 0]
        if len(kept):
            loss = loss + F.cross_entropy(z.expand(len(kept), -1), kept)
    return Prediction(loss, strengths, indices)


def used(prediction: Prediction, downstream: Tensor) -> Tensor:
    """A scalar in which both the loss and the largest scores count."""
    return 0.3 * prediction.loss + (prediction.strengths.float().tanh() * downstream[prediction.indices]).sum()


def in_chunks_of(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    monkeypatch.setattr(kernels, "CHUNK", scores)
    monkeypatch.setattr(kernels, "BLOCK", scores // 2)


@pytest.mark.parametrize("chunk", [1, 24 * 3, 2**20])
@given(seed=st.integers(0, 2**31), missing=st.floats(0, 1), k=st.integers(1, 5), scale=st.sampled_from([1.0, 100.0]))
@settings(max_examples=25)
def test_a_prediction_in_chunks_equals_the_plain_one_in_value_and_gradient(
    chunk: int, seed: int, missing: float, k: int, scale: float
) -> None:
    given_ = inputs(seed, missing, scale=scale)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_chunks_of(monkeypatch, chunk)
        found = predict(given_.x.requires_grad_(), *given_.differentiable()[1:], given_.labels, k)
        gradients = torch.autograd.grad(used(found, given_.downstream), given_.differentiable())
    expected = plain(*given_.differentiable(), given_.labels, k)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.strengths.sort().values, expected.strengths.sort().values)
    wanted = torch.autograd.grad(used(expected, given_.downstream), given_.differentiable())
    # Probabilities are as uncertain as the scores that they are made of, whose rounding grows with their size.
    rounding = 1e-4 * max(1.0, scale / 5)
    for ours, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, reference, atol=rounding, rtol=rounding)


@given(seed=st.integers(0, 2**31), missing=st.floats(0, 1))
@settings(max_examples=25)
def test_the_cross_entropy_of_a_linear_layer_equals_torchs(seed: int, missing: float) -> None:
    given_ = inputs(seed, missing)
    x, weight, _ = given_.differentiable()
    labels = given_.labels[:, 0]
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_chunks_of(monkeypatch, 24 * 2)
        found = linear_cross_entropy(x, weight, labels)
        gradients = torch.autograd.grad(2.5 * found, (x, weight))
    expected = F.cross_entropy(x @ weight.T, labels, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    for ours, reference in zip(gradients, torch.autograd.grad(2.5 * expected, (x, weight)), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def weights_for(labels: Tensor, mass: float, seed: int) -> Tensor:
    """Random weights of a row's labels, which sum to `mass`, and some of which are 0."""
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)).sub(0.2).relu() * (labels >= 0)
    return mass * weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def weighted(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Label by label."""
    negative = -scores.float().log_softmax(-1)
    parts = [
        weights[row, column] * negative[row, label]
        for row, wanted in enumerate(labels.tolist())
        for column, label in enumerate(wanted)
        if label >= 0
    ]
    return torch.stack([negative.sum() * 0, *parts]).sum()


@pytest.mark.parametrize("chunk", [1, 24 * 3, 2**20])
@given(
    seed=st.integers(0, 2**31),
    missing=st.floats(0, 1),
    mass=st.sampled_from([1.0, 0.3, 1e-3, 7.0]),
    repeated=st.booleans(),
)
@settings(max_examples=25)
def test_weighted_labels_count_by_their_weights_in_value_and_gradient(
    chunk: int, seed: int, missing: float, mass: float, repeated: bool
) -> None:
    given_ = inputs(seed, missing)
    labels = given_.labels % 2 if repeated else given_.labels
    labels = labels.where(given_.labels >= 0, -1)
    weights = weights_for(labels, mass, seed)
    x, weight, bias = given_.differentiable()
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_chunks_of(monkeypatch, chunk)
        found = predict(x, weight, bias, labels, 3, weights)
        gradients = torch.autograd.grad(used(found, given_.downstream), (x, weight, bias))
    expected = plain(x, weight, bias, labels, 3)._replace(loss=weighted(F.linear(x, weight, bias), labels, weights))
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-4, rtol=1e-5)
    wanted = torch.autograd.grad(used(expected, given_.downstream), (x, weight, bias))
    for ours, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_equal_weights_are_those_that_labels_have_without_weights() -> None:
    given_ = inputs(5, 0.4)
    valid = given_.labels >= 0
    weights = valid / valid.sum(-1, keepdim=True).clamp(min=1)
    x, weight, bias = given_.differentiable()
    losses = [predict(x, weight, bias, given_.labels, 3, each).loss for each in (None, weights)]
    torch.testing.assert_close(*losses)
    gradients = (torch.autograd.grad(each, (x, weight, bias)) for each in losses)
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk", [24 * 3, 2**20])
def test_in_bf16_it_is_as_near_to_fp32_as_the_plain_one(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(monkeypatch, chunk)
    given_ = inputs(0, 0.2, n=64, d=32)
    exact = _loss_gradients(plain, given_, torch.float32)
    ours, reference = (_loss_gradients(each, given_, torch.bfloat16) for each in (predict, plain))
    for mine, plains, true in zip(ours, reference, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= 1.1 * (plains - true).norm() + 1e-3 * true.norm()


def _loss_gradients(kernel: object, given_: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """Without the largest scores, which rounding can exchange."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = kernel(*given_.differentiable(), given_.labels, 4).loss  # type: ignore[operator]
    return [loss.detach(), *torch.autograd.grad(loss, given_.differentiable())]


def test_the_largest_scores_pass_their_gradient_on_in_bf16() -> None:
    given_ = inputs(1, 0.0, n=16)
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(*given_.differentiable(), given_.labels, 4)
    slopes = torch.randn(found.strengths.shape)
    gradients = torch.autograd.grad((found.strengths * slopes).sum(), given_.differentiable())
    scores = F.linear(*given_.differentiable()).gather(1, found.indices)
    for ours, true in zip(
        gradients, torch.autograd.grad((scores * slopes).sum(), given_.differentiable()), strict=True
    ):
        torch.testing.assert_close(ours, true, atol=1e-5, rtol=1e-5)


def test_under_checkpointing_nothing_changes() -> None:
    given_ = inputs(2, 0.3)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return used(predict(x.tanh(), weight, bias, given_.labels, 3), given_.downstream)

    direct = torch.autograd.grad(loss(*given_.differentiable()), given_.differentiable())
    value = checkpoint(loss, *given_.differentiable(), use_reentrant=False)
    for ours, reference in zip(torch.autograd.grad(value, given_.differentiable()), direct, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("has_weights", [False, True])
def test_a_compiled_prediction_equals_an_eager_one(has_weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    in_chunks_of(monkeypatch, 24 * 3)
    given_ = inputs(3, 0.3)
    weights = weights_for(given_.labels, 1.0, 3) if has_weights else None

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return used(predict(x, weight, bias, given_.labels, 3, weights), given_.downstream)

    expected = loss(*given_.differentiable())
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(*given_.differentiable())
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(each, given_.differentiable()) for each in (found, expected))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference)


def test_without_gradients_the_loss_is_the_same() -> None:
    given_ = inputs(4, 0.3)
    with torch.no_grad():
        found = predict(given_.x, given_.weight, given_.bias, given_.labels, 3)
    torch.testing.assert_close(found.loss, plain(given_.x, given_.weight, given_.bias, given_.labels, 3).loss)


@given(st.integers(0, 2**31), st.sampled_from([(8, 1), (64, 8), (65, 8), (256, 32), (24, 5)]))
@settings(max_examples=40)
def test_the_largest_are_found_in_two_steps(seed: int, shape: tuple[int, int]) -> None:
    classes, k = shape
    scores = torch.rand(5, classes, generator=torch.Generator().manual_seed(seed))
    values, places = top_k(scores, k)
    torch.testing.assert_close(values.sort(descending=True).values, scores.topk(k).values)
    torch.testing.assert_close(scores.gather(1, places), values)

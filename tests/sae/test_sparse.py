import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cocomix.runtime import runtime
from cocomix.sae import sparse
from cocomix.sae.sparse import dots, top_indices, weighted_sum

SHAPES = {"n": st.integers(1, 6), "k": st.integers(1, 5), "latents": st.integers(1, 9), "d": st.integers(1, 7)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def bags(n: int, k: int, latents: int) -> Tensor:
    """Indices that may repeat, within a row and between rows."""
    return torch.randint(0, latents, (n, k), generator=torch.Generator().manual_seed(1))


@given(**SHAPES)
def test_dots_are_the_dense_products_at_the_indices_with_their_gradients(n: int, k: int, latents: int, d: int) -> None:
    x, weight, indices = normal(n, d), normal(latents, d, seed=1), bags(n, k, latents)
    slope = normal(n, k, seed=2).detach()
    plain = (x @ weight.T).gather(1, indices)
    fused = dots(x, weight, indices)
    torch.testing.assert_close(fused, plain)
    for ours, expected in zip(
        torch.autograd.grad(fused, (x, weight), slope), torch.autograd.grad(plain, (x, weight), slope), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@given(**SHAPES)
def test_weighted_sums_are_the_dense_product_with_their_gradients(n: int, k: int, latents: int, d: int) -> None:
    values, weight, indices = normal(n, k), normal(latents, d, seed=1), bags(n, k, latents)
    slope = normal(n, d, seed=2).detach()
    plain = torch.zeros(n, latents, dtype=torch.float64).scatter_add(1, indices, values) @ weight
    fused = weighted_sum(values, weight, indices)
    torch.testing.assert_close(fused, plain)
    for ours, expected in zip(
        torch.autograd.grad(fused, (values, weight), slope),
        torch.autograd.grad(plain, (values, weight), slope),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


def test_without_the_kernels_the_dense_products_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    x, values, weight, indices = normal(4, 3), normal(4, 2, seed=3), normal(6, 3, seed=1), bags(4, 2, 6)
    fused = dots(x, weight, indices), weighted_sum(values, weight, indices)
    monkeypatch.setattr(sparse, "has_kernels", lambda _: False)
    monkeypatch.setattr(sparse._Dots, "apply", lambda *_: pytest.fail("fused"))
    monkeypatch.setattr(sparse.F, "embedding_bag", lambda *_: pytest.fail("fused"))
    torch.testing.assert_close((dots(x, weight, indices), weighted_sum(values, weight, indices)), fused)


def test_dots_pass_a_numerical_gradient_check() -> None:
    assert torch.autograd.gradcheck(dots, (normal(3, 4), normal(5, 4, seed=1), bags(3, 2, 5)))


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = normal(3, 4), normal(5, 4, seed=1).detach()
    dots(x, weight, bags(3, 2, 5)).sum().backward()
    assert x.grad is not None


@given(n=st.integers(1, 5), latents=st.integers(1, 200), data=st.data())
def test_the_top_indices_are_those_of_the_dense_products(n: int, latents: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, latents))
    x, weight, bias = normal(n, 4).detach(), normal(latents, 4, seed=1).detach(), normal(latents, seed=2).detach()
    expected = (x @ weight.T + bias).topk(k).indices
    torch.testing.assert_close(top_indices(x, weight, bias, k).sort(1).values, expected.sort(1).values)


def test_bf16_selection_changes_only_rows_that_are_about_equal_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (each.detach().float() for each in (normal(64, 32), normal(512, 32, seed=1), normal(512, seed=2)))
    scores = x @ weight.T + bias
    least = scores.topk(16).values[:, -1:]
    monkeypatch.setenv("COCOMIX_PRECISION", "bf16")
    runtime.cache_clear()
    chosen = scores.gather(1, top_indices(x, weight, bias, 16))
    assert (chosen >= least - 0.02 * scores.abs().amax()).all()

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cocomix.plumbing.runtime import runtime
from cocomix.sae import sparse
from cocomix.sae.sparse import (
    Chosen,
    batch_top_indices,
    dots,
    indices_above,
    kth_largest,
    largest,
    partial_sums,
    pays,
    top_indices,
    weighted_sum,
)

# Some have so few rows that the whole product is faster, some so many that it is not.
SHAPES = {"n": st.integers(1, 6), "k": st.integers(1, 5), "latents": st.integers(1, 80), "d": st.integers(1, 7)}


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


@given(**SHAPES, fused=st.booleans(), data=st.data())
def test_partial_sums_are_dense_products_with_their_gradients(
    n: int, k: int, latents: int, d: int, fused: bool, data: st.DataObject
) -> None:
    ends = sorted(data.draw(st.sets(st.integers(1, latents), min_size=1, max_size=4)))
    values, weight, indices = normal(n, k), normal(latents, d, seed=1), bags(n, k, latents)
    slope = normal(n, len(ends), d, seed=2).detach()
    dense = torch.zeros(n, latents, dtype=torch.float64).scatter_add(1, indices, values)
    plain = torch.stack([dense[:, a:b] @ weight[a:b] for a, b in itertools.pairwise([0, *ends])], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "has_kernels", lambda _: fused)
        ours = partial_sums(values, weight, indices, ends)
    torch.testing.assert_close(ours, plain)
    for each, expected in zip(
        torch.autograd.grad(ours, (values, weight), slope),
        torch.autograd.grad(plain, (values, weight), slope),
        strict=True,
    ):
        torch.testing.assert_close(each, expected)


def test_without_the_kernels_the_dense_products_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    x, values, weight, indices = normal(4, 3), normal(4, 2, seed=3), normal(16, 3, seed=1), bags(4, 2, 16)
    fused = dots(x, weight, indices), weighted_sum(values, weight, indices)
    monkeypatch.setattr(sparse, "has_kernels", lambda _: False)
    monkeypatch.setattr(sparse._Dots, "apply", lambda *_: pytest.fail("fused"))
    monkeypatch.setattr(sparse.F, "embedding_bag", lambda *_: pytest.fail("fused"))
    torch.testing.assert_close((dots(x, weight, indices), weighted_sum(values, weight, indices)), fused)


def test_dots_pass_a_numerical_gradient_check() -> None:
    assert torch.autograd.gradcheck(dots, (normal(3, 4), normal(16, 4, seed=1), bags(3, 2, 16)))


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = normal(3, 4), normal(16, 4, seed=1).detach()
    dots(x, weight, bags(3, 2, 16)).sum().backward()
    assert x.grad is not None


def test_a_weight_has_the_dense_gradient_where_the_activations_have_none() -> None:
    x, weight, indices = normal(3, 4).detach(), normal(16, 4, seed=1), bags(3, 2, 16)
    assert pays(indices, weight)
    (gradient,) = torch.autograd.grad(dots(x, weight, indices).square().sum(), weight)
    (expected,) = torch.autograd.grad((x @ weight.T).gather(1, indices).square().sum(), weight)
    torch.testing.assert_close(gradient, expected)


@given(n=st.integers(1, 5), latents=st.integers(1, 200), data=st.data())
def test_the_top_indices_are_those_of_the_dense_products(n: int, latents: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, latents))
    x, weight, bias = normal(n, 4).detach(), normal(latents, 4, seed=1).detach(), normal(latents, seed=2).detach()
    expected = (x @ weight.T + bias).topk(k).indices
    torch.testing.assert_close(top_indices(x, weight, bias, k).sort(1).values, expected.sort(1).values)


@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(8, 1), (64, 8), (65, 8), (256, 32), (24, 5), (600, 1), (1024, 32), (8192, 20), (7, 7)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    ties=st.booleans(),
)
@settings(max_examples=60)
def test_the_largest_are_found_in_steps(seed: int, shape: tuple[int, int], dtype: torch.dtype, ties: bool) -> None:
    latents, k = shape
    scores = torch.randn(5, latents, generator=torch.Generator().manual_seed(seed))
    scores = (scores.round() if ties else scores).to(dtype)
    places = largest(scores, k)
    found, expected = scores.gather(1, places).sort(descending=True).values, scores.topk(k).values
    assert torch.equal(found.relu(), expected.relu())
    assert all(len(row.unique()) == k for row in places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinity_is_the_largest_and_a_zero_is_less_than_any_positive_score(dtype: torch.dtype) -> None:
    inf = float("inf")
    scores = torch.tensor([[-inf, 0.0, -1.0, inf, -0.0, 1e-38], [0.5, -inf, -3.0, 2.0, 0.0, 1.0]], dtype=dtype)
    assert largest(scores, 3)[1].sort().values.tolist() == [0, 3, 5]
    assert {3, 5} <= set(largest(scores, 3)[0].tolist())


def test_bf16_selection_changes_only_rows_that_are_about_equal_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (each.detach().float() for each in (normal(64, 32), normal(512, 32, seed=1), normal(512, seed=2)))
    scores = x @ weight.T + bias
    least = scores.topk(16).values[:, -1:]
    monkeypatch.setenv("COCOMIX_PRECISION", "bf16")
    runtime.cache_clear()
    chosen = scores.gather(1, top_indices(x, weight, bias, 16))
    assert (chosen >= least - 0.02 * scores.abs().amax()).all()


def test_many_rows_are_taken_from_the_whole_product() -> None:
    weight = normal(800, 4)
    assert pays(bags(3, 100, 800), weight)
    assert not pays(bags(3, 101, 800), weight)


def rows_of(chosen: Chosen) -> list[list[int]]:
    return [sorted(row[taken].tolist()) for row, taken in zip(chosen.indices, chosen.taken, strict=True)]


@given(n=st.integers(1, 5), latents=st.integers(1, 60), data=st.data())
def test_the_indices_above_0_are_those_of_the_dense_products(n: int, latents: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(1, latents))
    x, weight, bias = normal(n, 4).detach(), normal(latents, 4, seed=1).detach(), normal(latents, seed=2).detach()
    chosen = indices_above(x, weight, bias, least=least)
    assert rows_of(chosen) == [row.nonzero().flatten().tolist() for row in x @ weight.T + bias > 0]
    assert chosen.indices.shape[1] >= least
    assert ((chosen.indices >= 0) & (chosen.indices < latents)).all()


@given(n=st.integers(1, 5), latents=st.integers(1, 60), data=st.data())
def test_the_top_of_a_batch_is_that_of_all_its_dense_products(n: int, latents: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, latents))
    x, weight, bias = normal(n, 4).detach(), normal(latents, 4, seed=1).detach(), normal(latents, seed=2).detach()
    scores = x @ weight.T + bias
    least = scores.flatten().topk(n * k).values.min()
    assert rows_of(batch_top_indices(x, weight, bias, k)) == [
        row.nonzero().flatten().tolist() for row in scores >= least
    ]


@given(size=st.integers(1, 5000), share=st.floats(0, 1), ties=st.booleans(), seed=st.integers(0, 99))
def test_the_kth_largest_is_that_of_all(size: int, share: float, ties: bool, seed: int) -> None:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if ties else scores
    k = max(1, round(share * size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "SAMPLE", 50)
        assert kth_largest(scores, k) == scores.topk(k).values.min()


def test_the_kth_largest_is_found_where_the_sample_misleads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SAMPLE", 10)
    scores = torch.zeros(1000)
    scores[::101] = 9.0  # exactly those that are sampled
    assert kth_largest(scores, 100) == 0

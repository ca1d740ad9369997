import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.distribution import sampling
from cocomix.distribution.sampling import sample, uniforms

LARGEST = 2**32 - 1


def some_logits(positions: int, vocab: int, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(positions, vocab, generator=torch.Generator().manual_seed(seed))


def test_shares_of_the_draws_are_the_distribution_on_average() -> None:
    logits, seeds, draws = some_logits(6, 40), 400, 50
    counts = torch.zeros(6, 40, dtype=torch.float64)
    for seed in range(seeds):
        drawn = sample(logits, torch.from_numpy(uniforms(seed, "train", range(1), 6, draws)[0])).ids
        counts += torch.nn.functional.one_hot(drawn.long(), 40).sum(1)
    expected = logits.double().softmax(-1)
    error = (expected * (1 - expected) / (seeds * draws)).sqrt()
    # 240 frequencies of 20,000 independent draws: one beyond 4.5 standard errors is a matter of 1 in 600.
    assert ((counts / (seeds * draws) - expected).abs() < 4.5 * error).all()
    chi_squared = (seeds * draws * (counts / (seeds * draws) - expected).square() / expected).sum(1)
    assert (chi_squared < 39 + 4.5 * math.sqrt(2 * 39)).all()


@given(
    vocab=st.integers(1, 3000),
    scale=st.floats(0, 30),
    temperature=st.floats(0.1, 10),
    seed=st.integers(0, 2**63 - 1),
    draws=st.integers(1, 255),
)
@settings(max_examples=50)
def test_a_draw_is_where_its_uniform_number_falls_in_the_cumulative_distribution(
    vocab: int, scale: float, temperature: float, seed: int, draws: int
) -> None:
    logits = some_logits(3, vocab, scale)
    numbers = uniforms(seed, "validation", range(7, 8), 3, draws)[0]
    drawn = sample(logits, torch.from_numpy(numbers), temperature)
    probabilities = (logits.double() / temperature).softmax(-1).numpy()
    ends = np.cumsum(probabilities, -1)
    chosen, at = drawn.ids.numpy(), numbers / 2**32
    below = np.take_along_axis(ends - probabilities, chosen, -1)
    above = np.take_along_axis(ends, chosen, -1)
    assert (below - 1e-5 <= at).all()
    assert (at <= above + 1e-5).all()
    assert (np.take_along_axis(probabilities, chosen, -1) > 2**-32).all()
    assert (np.diff(chosen) >= 0).all()
    entropies = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(-1)
    np.testing.assert_allclose(drawn.entropies.numpy(), entropies, rtol=1e-4, atol=1e-4)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-1e4, 1.0, -1e4, 2.0, -1e4], [-1e4, -1e4, -1e4, -1e4, 0.0], [0.0, -1e4, -1e4, -1e4, -1e4]])
    edges = torch.tensor([[0, LARGEST // 2, LARGEST]]).expand(3, -1)
    assert sample(logits, edges).ids.tolist() == [[1, 3, 3], [4, 4, 4], [0, 0, 0]]


def test_the_largest_uniform_number_draws_a_token_whatever_the_rounding_of_the_distribution() -> None:
    for vocab in (1, 2, 3, 5, 7, 1000, 50257):
        logits = some_logits(2, vocab, 0.1)
        ids = sample(logits, torch.tensor([[0, LARGEST], [0, LARGEST]])).ids
        assert ids.tolist() == [[0, vocab - 1]] * 2


def test_uniform_numbers_are_a_function_of_seed_split_and_window_alone() -> None:
    whole = uniforms(3, "train", range(5, 9), 4, 50)
    assert whole.dtype == np.int64
    assert whole.shape == (4, 4, 50)
    np.testing.assert_array_equal(np.concatenate([uniforms(3, "train", range(5, 6), 4, 50), whole[1:]]), whole)
    np.testing.assert_array_equal(uniforms(3, "train", range(7, 9), 4, 50), whole[2:])
    others = [uniforms(4, "train", range(5, 6), 4, 50), uniforms(3, "validation", range(5, 6), 4, 50), whole[1:2]]
    for other in others:
        assert len(np.intersect1d(other, whole[:1])) < 2


def test_draws_do_not_depend_on_how_many_positions_are_processed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, numbers = some_logits(10, 64), torch.from_numpy(uniforms(0, "train", range(1), 10, 50)[0])
    whole = sample(logits, numbers)
    monkeypatch.setattr(sampling, "NUMBERS", {"cpu": 3 * 64})
    parts = sample(logits, numbers)
    assert torch.equal(parts.ids, whole.ids)
    assert torch.equal(parts.entropies, whole.entropies)


def test_bf16_logits_are_drawn_from_as_they_are() -> None:
    logits, numbers = some_logits(4, 64).bfloat16(), torch.from_numpy(uniforms(0, "train", range(1), 4, 50)[0])
    assert torch.equal(sample(logits, numbers).ids, sample(logits.float(), numbers).ids)

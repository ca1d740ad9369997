import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cocomix.modeling import kernels
from cocomix.params import HiddenDistance
from cocomix.tokens.window_data import NO_LABEL
from cocomix.training.distillation import fused_distillation_losses
from cocomix.training.losses import (
    concept_loss,
    distillation_loss,
    fused_next_token_loss,
    hidden_loss,
    labelled_positions,
    next_token_loss,
)


def concept_loss_by_definition(logits: Tensor, labels: Tensor) -> Tensor:
    """Paper Eq. 2, position by position: the mean over its labels of the cross-entropy to each."""
    total = logits.new_zeros(())
    for z, wanted in zip(logits.flatten(0, 1), labels.flatten(0, 1), strict=True):
        kept = wanted[wanted != NO_LABEL]
        if len(kept):
            total = total + F.cross_entropy(z.expand(len(kept), -1), kept)
    return total


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_the_concept_loss_equals_the_mean_of_cross_entropies_in_value_and_gradient(seed: int, missing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    labels = torch.randint(0, 7, (2, 5, 3), generator=generator)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < missing, NO_LABEL)
    expected, value = concept_loss_by_definition(logits, labels), concept_loss(logits, labels)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    if (labels != NO_LABEL).any():
        gradients = (torch.autograd.grad(each, logits)[0] for each in (value, expected))
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    assert labelled_positions(labels) == sum(bool((row != NO_LABEL).any()) for row in labels.flatten(0, 1))


def test_the_next_token_loss_sums_over_all_tokens_but_the_first_of_each_window() -> None:
    logits, windows = torch.randn(2, 4, 9), torch.randint(0, 9, (2, 4))
    expected = -sum(logits[b, t].log_softmax(-1)[windows[b, t + 1]] for b in range(2) for t in range(3))
    torch.testing.assert_close(next_token_loss(logits, windows), expected)


def fused_inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, the head, windows, the base model's logits."""
    generator = torch.Generator().manual_seed(seed)
    hidden, head = torch.randn(5, 4, 6, generator=generator), torch.randn(9, 6, generator=generator)
    windows = torch.randint(0, 9, (5, 4), generator=generator)
    return hidden.requires_grad_(), head.requires_grad_(), windows, torch.randn(5, 4, 9, generator=generator)


@pytest.mark.parametrize("chunk", [1, 4 * 9 * 2, 2**20])
def test_the_fused_next_token_loss_equals_that_of_the_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    hidden, head, windows, _ = fused_inputs(0)
    found, expected = fused_next_token_loss(hidden, head, windows), next_token_loss(hidden @ head.T, windows)
    torch.testing.assert_close(found, expected)
    for pair in zip(*(torch.autograd.grad(each, (hidden, head)) for each in (found, expected)), strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4 * 9 * 2, 2**20])
@pytest.mark.parametrize("bf16", [False, True])
@given(seed=st.integers(0, 2**31), kl_weight=st.sampled_from([0.0, 0.3, 2.0]))
@settings(max_examples=15)
def test_the_fused_distillation_losses_equal_those_of_the_logits_in_value_and_gradient(
    chunk: int, bf16: bool, seed: int, kl_weight: float
) -> None:
    hidden, head, windows, base_logits = fused_inputs(seed)
    with pytest.MonkeyPatch.context() as monkeypatch, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        monkeypatch.setattr(kernels, "CHUNK", chunk)
        monkeypatch.setattr(kernels, "BLOCK", chunk // 2)
        found = fused_distillation_losses(hidden, head, windows, base_logits, kl_weight)
        logits = torch.nn.functional.linear(hidden, head)
        expected = next_token_loss(logits, windows), distillation_loss(logits[:, :-1], base_logits[:, :-1])
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair)
    totals = found[0], expected[0] + kl_weight * expected[1]
    for pair in zip(*(torch.autograd.grad(0.7 * each, (hidden, head)) for each in totals), strict=True):
        # In bf16, the gradient of the head is rounded chunk by chunk.
        torch.testing.assert_close(*pair, atol=5e-2 if bf16 else 1e-5, rtol=2e-2 if bf16 else 1e-5)


def test_the_divergence_weighs_by_the_base_models_probabilities() -> None:
    logits, base_logits = torch.randn(3, 4, 9), 2 * torch.randn(3, 4, 9)
    student, base = logits.softmax(-1), base_logits.softmax(-1)
    expected = sum(
        (base[b, t, i] * (base[b, t, i] / student[b, t, i]).log()) for b in range(3) for t in range(4) for i in range(9)
    )
    torch.testing.assert_close(distillation_loss(logits, base_logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_the_distance_is_to_the_hidden_state_at_mean_0_and_variance_1(distance: HiddenDistance) -> None:
    predicted, hidden = torch.randn(2, 3, 8), 5 + 3 * torch.randn(2, 3, 8)
    expected = torch.zeros(())
    for mine, raw in zip(predicted.flatten(0, 1), hidden.flatten(0, 1), strict=True):
        target = (raw - raw.mean()) / raw.std(unbiased=False)
        expected += {
            "l1": (mine - target).abs().mean(),
            "l2": (mine - target).square().mean(),
            "cosine": 1 - mine @ target / (mine.norm() * target.norm()),
        }[distance]
    torch.testing.assert_close(hidden_loss(predicted, hidden, distance), expected, atol=1e-4, rtol=1e-4)

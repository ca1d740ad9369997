"""Distillation against its definition written out, in value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.modeling import kernels
from cocomix.params import KdParams
from cocomix.tokens.window_data import Drawn
from cocomix.training.distillation import Distillation, fused_distillation_losses

VOCAB, CONTEXT = 20, 7


def written_out(
    hidden: Tensor, head: Tensor, windows: Tensor, target: Tensor, temperature: float, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed next-token loss and divergence; target: probabilities [batch, context, vocab]."""
    logits = (hidden @ head.T)[:, :-1]
    tokens = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
    logs = (logits / temperature).log_softmax(-1)
    each = (torch.xlogy(target, target)[:, :-1] - target[:, :-1] * logs).sum(-1)
    return tokens, (each * kept).sum()


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], factor: float, *weights: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    whole = expected[0] + factor * expected[1]
    torch.testing.assert_close(
        torch.autograd.grad(found[0], weights), torch.autograd.grad(whole, weights), atol=1e-4, rtol=1e-4
    )


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    hidden = torch.randn(3, CONTEXT, 5, requires_grad=True)
    return hidden, torch.randn(VOCAB, 5, requires_grad=True), torch.randint(VOCAB, (3, CONTEXT))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.7, 2.0]), st.floats(0.1, 20), st.sampled_from([8, 2**20]))
def test_the_losses_from_logits_and_their_gradient_are_those_written_out(
    seed: int, temperature: float, kl_weight: float, block: int
) -> None:
    hidden, head, windows = inputs(seed)
    base, kept = torch.randn(3, CONTEXT, VOCAB), torch.rand(3, CONTEXT - 1) < 0.7
    target = (base / temperature).softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        found = fused_distillation_losses(hidden, head, windows, base, torch.tensor(kl_weight), temperature, kept)
    expected = written_out(hidden, head, windows, target, temperature, kept)
    assert_same(found, expected, kl_weight * temperature**2, hidden, head)


def drawn_from(target: Tensor, draws: int) -> Drawn:
    """Each token of the vocabulary in a random order, with its share of the draws; some are not drawn."""
    rows = target.flatten(0, -2)
    shares = F.one_hot(rows.multinomial(draws, replacement=True), rows.shape[-1]).sum(1) / draws
    order = torch.rand(rows.shape).argsort(-1)
    shares = shares.gather(-1, order)
    ids = order.masked_fill(shares == 0, -1)
    entropies = torch.special.entr(rows).sum(-1)
    shape = target.shape[:-1]
    return Drawn(ids.view(*shape, -1), shares.view(*shape, -1), entropies.view(shape))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0]), st.integers(1, 50))
def test_the_losses_from_draws_and_their_gradient_are_those_of_the_drawn_shares(
    seed: int, temperature: float, draws: int
) -> None:
    hidden, head, windows = inputs(seed)
    target = torch.randn(3, CONTEXT, VOCAB).softmax(-1)
    kept, drawn = torch.rand(3, CONTEXT - 1) < 0.7, drawn_from(target, draws)
    shares = torch.zeros_like(target).scatter_add_(-1, drawn.ids.clamp(min=0), drawn.shares)
    found = fused_distillation_losses(hidden, head, windows, drawn, torch.tensor(0.8), temperature, kept)
    tokens, crossed = written_out(hidden, head, windows, shares, temperature, kept)
    entropy = (torch.special.entr(shares).sum(-1) - drawn.entropies)[:, :-1]  # the divergence is from the whole target
    assert_same(found, (tokens, crossed + (entropy * kept).sum()), 0.8 * temperature**2, hidden, head)


def test_over_many_draws_the_divergence_and_its_gradient_are_those_of_the_whole_distribution() -> None:
    hidden, head, windows = inputs(0)
    base = torch.randn(3, CONTEXT, VOCAB)
    weight, found, gradients = torch.tensor(3.0), list[Tensor](), list[Tensor]()
    tokens, divergence = fused_distillation_losses(hidden, head, windows, base, weight)
    (gradient,) = torch.autograd.grad(tokens, head)
    for _ in range(2000):
        losses = fused_distillation_losses(hidden, head, windows, drawn_from(base.softmax(-1), 5), weight)
        found.append(losses[1])
        gradients.append(torch.autograd.grad(losses[0], head)[0])
    each, slopes = torch.stack(found), torch.stack(gradients)
    assert abs(each.mean() - divergence) < 4 * each.std() / len(each) ** 0.5
    error = (slopes.mean(0) - gradient).abs() / (slopes.std(0) / len(each) ** 0.5)
    assert error.max() < 5  # standard errors, of 100 numbers


def base_model() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    shape = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 8, "n_layer": 1, "n_head": 1, "bos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, initializer_range=1.0)).eval()


@pytest.mark.parametrize("source", ["online", "cached"])
def test_the_positions_on_which_the_base_model_is_surest_are_left_out_and_the_others_weigh_as_their_mean(
    source: str,
) -> None:
    hidden, head, windows = inputs(2)
    logits = base_model()(windows).logits.detach()
    entropies = torch.special.entr(logits.softmax(-1)).sum(-1)[:, :-1]
    kept = torch.ones(3, 6, dtype=torch.bool).scatter_(1, entropies.argsort(1)[:, :2], value=False)
    drawn = drawn_from(logits.softmax(-1), 5) if source == "cached" else None
    params = KdParams(source=source, kl_weight=0.5, leave_out=0.3)  # type: ignore[arg-type]
    distillation = Distillation(params, base_model() if source == "online" else None)
    found = distillation.losses(hidden, head, windows, drawn, torch.tensor(0.5))
    weight = torch.tensor(0.5 * 6 / 4)
    expected = fused_distillation_losses(hidden, head, windows, drawn or logits, weight, kept=kept)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found[0], head), torch.autograd.grad(expected[0], head))
    assert distillation.positions(windows) == 3 * 4
    assert (distillation.flops(CONTEXT) > 0) == (source == "online")

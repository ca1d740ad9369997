import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cocomix.training.losses import NO_LABEL, concept_loss, labelled_positions, next_token_loss


def concept_loss_by_definition(logits: Tensor, labels: Tensor) -> Tensor:
    """Paper Eq. 2, position by position: the mean over its labels of the cross-entropy to each."""
    total = logits.new_zeros(())
    for z, wanted in zip(logits.flatten(0, 1), labels.flatten(0, 1), strict=True):
        kept = wanted[wanted != NO_LABEL]
        if len(kept):
            total = total + F.cross_entropy(z.expand(len(kept), -1), kept)
    return total


@settings(max_examples=30, deadline=None)
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

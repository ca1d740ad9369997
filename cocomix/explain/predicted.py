"""What a language model makes of a concept: where it predicts it, whether rightly, and what that does to its text."""

from typing import NamedTuple

import torch
from torch import Tensor

from cocomix.base import micro_batch
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.modeling.concept_edits import Scale


class Place(NamedTuple):
    """A position at which a concept is predicted."""

    window: int
    position: int
    strength: float
    """The concept's logit."""
    right: bool | None
    """Whether the concept is a label there; None: there were no labels."""


class Effect(NamedTuple):
    """A token that a predicted concept makes more likely."""

    token: int
    change: float
    """Of its probability, on average."""


class Predicted(NamedTuple):
    """How a language model predicts one concept in some text."""

    predictions: int
    """Positions at which it is among the predicted."""
    right: int | None
    """Of them, those of which it is a label."""
    labelled: int | None
    """Positions of which it is a label."""
    places: list[Place]
    """The strongest predictions, of a window at most one."""
    promotes: list[Effect]
    """By the change of the next token's distribution where the concept is predicted, when its strength is doubled."""


@torch.no_grad()
def predicted(
    model: CoCoMixForCausalLM, concept: int, ids: Tensor, labels: Tensor | None = None, most: int = 10
) -> Predicted:
    """Read some windows with a language model that mixes concepts. One or two forward passes.

    The strength is doubled at all positions at once, as steering does it.

    Args:
        ids: int64 [windows, seq].
        labels: the concepts of each position, int64 [windows, seq, k_attr]; numbers that are no concept: no label.
        most: places and tokens at most.
    """
    here = torch.zeros(ids.shape, dtype=torch.bool)
    strengths = torch.full(ids.shape, -torch.inf)
    change = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(ids)), micro_batch(ids.shape[1])):
        some = ids[rows].to(model.device)
        plain = model(some, use_cache=False)
        found = (plain.concept_logits.topk(model.config.concept_k).indices == concept).any(2)
        here[rows], strengths[rows] = found.cpu(), plain.concept_logits[..., concept].float().cpu()
        if found.any():
            doubled = model(some, use_cache=False, concept_edits=[Scale(concept, 2.0)])
            shares = (each.logits[found].softmax(1, dtype=torch.float32) for each in (doubled, plain))
            change += torch.sub(*shares).sum(0, dtype=torch.float64).cpu()
    is_label = (labels == concept).any(2) if labels is not None else None
    peaks = strengths.masked_fill(~here, -torch.inf).max(1)
    best = [each for each in peaks.values.argsort(descending=True, stable=True).tolist() if here[each].any()][:most]
    predictions = int(here.sum())
    largest = (change / max(1, predictions)).topk(min(most, len(change)))
    return Predicted(
        predictions,
        None if is_label is None else int((is_label & here).sum()),
        None if is_label is None else int(is_label.sum()),
        [
            Place(
                window,
                position,
                float(peaks.values[window]),
                None if is_label is None else bool(is_label[window, position]),
            )
            for window in best
            for position in [int(peaks.indices[window])]
        ],
        [Effect(*each) for each in zip(largest.indices.tolist(), largest.values.tolist(), strict=True) if each[1] > 0],
    )

"""Concepts of the atlas that the report shows: those with the best labels, and typical ones."""

from typing import NamedTuple

from cocomix.explain.atlas import Atlas, Card

SHOWN = 4
"""Concepts of each kind."""
CONTEXTS = 2
"""Excerpts per concept."""
LEAST = 16
"""Held-out firings that the score of a shown label must rest on."""


class Cards(NamedTuple):
    """Cards of concepts, best first."""

    best: list[Card]
    """The labels with the highest AUC."""
    typical: list[Card]
    """The labels whose AUC is nearest to the median; none of them is among the best."""


def read_cards(atlas: Atlas) -> Cards:
    """Choose concepts by the AUC of their labels, among those with a label and at least `LEAST` held-out firings.

    Raises:
        UserError: when the atlas is damaged.
    """
    scored = sorted(
        (-auc, number)
        for number, auc, held_out in atlas.scores()
        if auc is not None and held_out >= LEAST and atlas.label(number)
    )
    best = [number for _, number in scored[:SHOWN]]
    first = max(SHOWN, (len(scored) - SHOWN) // 2)
    typical = [number for _, number in scored[first : first + SHOWN]]
    return Cards(*([_shortened(atlas.concept(each)) for each in some] for some in (best, typical)))


def _shortened(card: Card) -> Card:
    return card._replace(contexts=card.contexts[:CONTEXTS])

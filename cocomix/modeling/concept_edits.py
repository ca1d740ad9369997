"""Edits of predicted concepts, between their prediction and their mixing.

At each position the model predicts logits z, the strengths of all concepts, and keeps the `concept_k` largest: TopK(z),
a sparse vector over the concepts, which is mixed (paper Eq. 3). An edit is a function from `Concepts` to `Concepts`:
`Scale`, `Ablate`, `Set`, `Swap`, or any other. Edits are applied to TopK(z) in the given order. Those with
`before_selection` are applied first, to z, before its largest entries are selected.

Strengths are in the units of z: exp(z) is proportional to the predicted probability that the concept is a label. With
`concept_head: released` a concept adds its strength times its row of `compress` times the standard deviation over the
features of the hidden state; with `equations` it adds its strength times its row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import top_k


class Concepts(NamedTuple):
    """The concepts that are mixed at each position."""

    strengths: Tensor
    """[batch, seq, k]; a concept that occurs twice has the sum of both, one that does not occur has 0."""
    indices: Tensor
    """int64 [batch, seq, k], unordered."""
    logits: Tensor
    """z, whose largest entries are `strengths`: [batch, seq, num_concepts]."""
    positions: Tensor
    """Positions in the texts, from 0: int64 [batch, seq], or [1, seq] where all rows have the same."""

    def reselected(self, logits: Tensor) -> "Concepts":
        """Select the k largest of other logits, [batch, seq, num_concepts]; -inf is never mixed."""
        strengths, indices = top_k(logits.flatten(0, 1), self.strengths.shape[-1])
        strengths = strengths.masked_fill(strengths == float("-inf"), 0.0)
        return self._replace(
            strengths=strengths.view_as(self.strengths), indices=indices.view_as(self.indices), logits=logits
        )


Edit = Callable[[Concepts], Concepts]
"""Returns changed `strengths` and `indices`, both of the same, any width; must treat positions independently."""


@dataclass(frozen=True, kw_only=True)
class _Somewhere:
    start: int = 0
    """The first edited position, counted from the beginning of the text (after padding)."""
    stop: int | None = None
    """The end of the edited positions, exclusive; None: the end of the text."""

    def __repr__(self) -> str:
        """The call that constructs it, without default values."""
        given = [each for each in fields(self) if getattr(self, each.name) != each.default]
        values = [
            f"{each.name}={getattr(self, each.name)!r}" if each.kw_only else repr(getattr(self, each.name))
            for each in sorted(given, key=lambda each: bool(each.kw_only))
        ]
        return f"{type(self).__name__}({', '.join(values)})"

    def _here(self, concepts: Concepts) -> Tensor:
        """Mask of the edited positions: bool [batch, seq, 1]."""
        here = concepts.positions >= self.start
        if self.stop is not None:
            here = here & (concepts.positions < self.stop)
        return here[..., None]

    def _is(self, concepts: Concepts, concept: int) -> Tensor:
        """Mask of `concept` among the selected concepts of edited positions: bool [batch, seq, k]."""
        return self._here(concepts) & (concepts.indices == _checked(concept, concepts))


@dataclass(frozen=True, repr=False)
class Scale(_Somewhere):
    """Multiply a concept's strength.

    By default only where the concept is selected; other positions do not change. With `before_selection` its logit is
    scaled at every position, as in the paper's steering (section 3.2): a concept just below the selected ones may
    become selected, a weakened one may drop out for the next strongest, and a negative factor may select it where its
    logit was negative.
    """

    concept: int
    factor: float
    before_selection: bool = False

    def __call__(self, concepts: Concepts) -> Concepts:
        """Apply the edit."""
        if not self.before_selection:
            strengths = concepts.strengths
            return concepts._replace(
                strengths=torch.where(self._is(concepts, self.concept), self.factor * strengths, strengths)
            )
        z = concepts.logits[..., [_checked(self.concept, concepts)]]
        here = self._here(concepts) & z.isfinite()  # else an ablated concept could return: its logit is -inf
        return _with_logit(concepts, self.concept, torch.where(here, self.factor * z, z))


@dataclass(frozen=True, repr=False)
class Ablate(_Somewhere):
    """Remove a concept: one concept less is mixed; with `before_selection` the next strongest takes its place."""

    concept: int
    before_selection: bool = False

    def __call__(self, concepts: Concepts) -> Concepts:
        """Apply the edit."""
        if not self.before_selection:
            found = self._is(concepts, self.concept)
            return concepts._replace(strengths=concepts.strengths.masked_fill(found, 0.0))
        z = concepts.logits[..., [_checked(self.concept, concepts)]]
        return _with_logit(concepts, self.concept, z.masked_fill(self._here(concepts), float("-inf")))


@dataclass(frozen=True, repr=False)
class Set(_Somewhere):
    """Give a concept this strength at every position, whether or not it is selected there.

    Where it is not selected, it is mixed in addition to the selected ones.
    """

    concept: int
    strength: float

    def __call__(self, concepts: Concepts) -> Concepts:
        """Apply the edit."""
        kept = concepts.strengths.masked_fill(self._is(concepts, self.concept), 0.0)
        strength = self.strength * self._here(concepts).expand(*kept.shape[:-1], 1).to(kept.dtype)
        index = torch.full_like(strength, self.concept, dtype=torch.int64)
        return concepts._replace(
            strengths=torch.cat([kept, strength], dim=-1), indices=torch.cat([concepts.indices, index], dim=-1)
        )


@dataclass(frozen=True, repr=False)
class Swap(_Somewhere):
    """Swap two concepts: each gets the other's strength."""

    concept: int
    other: int

    def __call__(self, concepts: Concepts) -> Concepts:
        """Apply the edit."""
        one, two = self._is(concepts, self.concept), self._is(concepts, self.other)
        indices = concepts.indices.masked_fill(one, self.other).masked_fill(two, self.concept)
        return concepts._replace(indices=indices)


ConceptEdits = Sequence[Edit] | Sequence[Sequence[Edit]]
"""Edits for all rows of a batch, or a list of edits for each row."""


def put_first(indices: Tensor, first: Tensor) -> Tensor:
    """Put other concepts before those of each position, which lose their last ones: int64 [..., k].

    Args:
        indices: concepts in the order of their places, int64 [..., k].
        first: different concepts, int64 [..., m], negative: none.
    """
    is_other = ~(indices[..., :, None] == first[..., None, :]).any(-1)
    ranking, stays = torch.cat([first, indices], dim=-1), torch.cat([first >= 0, is_other], dim=-1)
    places = stays.int().argsort(dim=-1, descending=True, stable=True)[..., : indices.shape[-1]]
    return ranking.gather(-1, places)


def is_by_row(edits: ConceptEdits) -> bool:
    """Whether there is a list of edits for each row."""
    return any(isinstance(each, Sequence) for each in edits)


def edited(concepts: Concepts, edits: ConceptEdits) -> Concepts:
    """Apply edits.

    Raises:
        ValueError: when the number of lists of edits differs from the number of rows, or a concept does not exist.
    """
    if not is_by_row(edits):
        for edit in sorted(edits, key=lambda each: not getattr(each, "before_selection", False)):  # type: ignore[arg-type]
            concepts = edit(concepts)  # type: ignore[operator]
        return concepts
    batch = len(concepts.strengths)
    if len(edits) != batch:
        raise ValueError(f"concept_edits: {len(edits)} lists of edits for {batch} rows; give one list a row")
    positions = concepts.positions.expand(batch, -1)
    rows = [
        edited(Concepts(*(each[row, None] for each in (*concepts[:3], positions))), some)  # type: ignore[arg-type]
        for row, some in enumerate(edits)
    ]
    width = max(row.strengths.shape[-1] for row in rows)
    return concepts._replace(
        strengths=torch.cat([_widened(row.strengths, width) for row in rows]),
        indices=torch.cat([_widened(row.indices, width) for row in rows]),
    )


def _widened(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def _with_logit(concepts: Concepts, concept: int, z: Tensor) -> Concepts:
    index = torch.full_like(z, concept, dtype=torch.int64)
    return concepts.reselected(concepts.logits.scatter(-1, index, z))


def _checked(concept: int, concepts: Concepts) -> int:
    """Return `concept` if it exists.

    Raises:
        ValueError: otherwise.
    """
    count = concepts.logits.shape[-1]
    if not 0 <= concept < count:
        raise ValueError(f"concept_edits: no concept {concept}; the model has 0 to {count - 1}")
    return concept

"""Changes to predicted concepts, between their prediction and their mixing.

At each position the model predicts strengths of all concepts, the logits z, and keeps the `concept_k` largest: TopK(z),
a sparse vector with an entry a concept, which is mixed (paper Eq. 3). An edit is a function from `Concepts` to
`Concepts`; `Scale`, `Ablate`, `Set` and `Swap` are such functions, and so is any other. They are applied in the order
in which they are given, to TopK(z); those with `before_selection` come first, and act on z, of which the largest are
then kept.

Strengths are in the units of z: exp(z) is proportional to the predicted probability that the concept is a label. With
`concept_head: released` a concept adds its strength times its row of `compress` times the standard deviation over the
features of the hidden state; with `equations` its strength times its row.
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
    """[batch, seq, k]; a concept that is there twice has the sum, one that is not there 0."""
    indices: Tensor
    """int64 [batch, seq, k], in no order."""
    logits: Tensor
    """z, of which `strengths` are the largest: [batch, seq, num_concepts]."""
    positions: Tensor
    """Their places in the texts, from 0: int64 [batch, seq], or [1, seq] where those of all rows are the same."""

    def reselected(self, logits: Tensor) -> "Concepts":
        """The k largest of other logits [batch, seq, num_concepts] instead; -inf is never mixed."""
        strengths, indices = top_k(logits.flatten(0, 1), self.strengths.shape[-1])
        strengths = strengths.masked_fill(strengths == float("-inf"), 0.0)
        return self._replace(
            strengths=strengths.view_as(self.strengths), indices=indices.view_as(self.indices), logits=logits
        )


Edit = Callable[[Concepts], Concepts]
"""Returns changed `strengths` and `indices`, of any one width; it must treat every position by itself."""


@dataclass(frozen=True, kw_only=True)
class _Somewhere:
    start: int = 0
    """The first position that is edited, counted from the beginning of the text (after padding)."""
    stop: int | None = None
    """The first position after it that is not; none: all the following are edited."""

    def __repr__(self) -> str:
        """The call that makes it, without what is as by default."""
        given = [each for each in fields(self) if getattr(self, each.name) != each.default]
        values = [
            f"{each.name}={getattr(self, each.name)!r}" if each.kw_only else repr(getattr(self, each.name))
            for each in sorted(given, key=lambda each: bool(each.kw_only))
        ]
        return f"{type(self).__name__}({', '.join(values)})"

    def _here(self, concepts: Concepts) -> Tensor:
        """bool [batch, seq, 1]."""
        here = concepts.positions >= self.start
        if self.stop is not None:
            here = here & (concepts.positions < self.stop)
        return here[..., None]

    def _is(self, concepts: Concepts, concept: int) -> Tensor:
        """Where `concept` is among the selected, at edited positions: bool [batch, seq, k]."""
        return self._here(concepts) & (concepts.indices == _checked(concept, concepts))


@dataclass(frozen=True, repr=False)
class Scale(_Somewhere):
    """Multiply a concept's strength.

    As it is, where the concept is among the selected: other positions are left alone. With `before_selection`
    everywhere, as the paper steers (section 3.2): a concept that is not far below the selected may come in, and one
    that is made smaller drops out for the next; a negative factor forces it in where z was negative.
    """

    concept: int
    factor: float
    before_selection: bool = False

    def __call__(self, concepts: Concepts) -> Concepts:
        """Edit."""
        if not self.before_selection:
            strengths = concepts.strengths
            return concepts._replace(
                strengths=torch.where(self._is(concepts, self.concept), self.factor * strengths, strengths)
            )
        z = concepts.logits[..., [_checked(self.concept, concepts)]]
        here = self._here(concepts) & z.isfinite()  # else what was ablated would come back
        return _with_logit(concepts, self.concept, torch.where(here, self.factor * z, z))


@dataclass(frozen=True, repr=False)
class Ablate(_Somewhere):
    """Leave a concept out: one concept less is mixed; with `before_selection` the next strongest takes its place."""

    concept: int
    before_selection: bool = False

    def __call__(self, concepts: Concepts) -> Concepts:
        """Edit."""
        if not self.before_selection:
            found = self._is(concepts, self.concept)
            return concepts._replace(strengths=concepts.strengths.masked_fill(found, 0.0))
        z = concepts.logits[..., [_checked(self.concept, concepts)]]
        return _with_logit(concepts, self.concept, z.masked_fill(self._here(concepts), float("-inf")))


@dataclass(frozen=True, repr=False)
class Set(_Somewhere):
    """Give a concept this strength at every position, whether it is among the selected or not.

    Where it was not, it is mixed besides them: none drops out.
    """

    concept: int
    strength: float

    def __call__(self, concepts: Concepts) -> Concepts:
        """Edit."""
        kept = concepts.strengths.masked_fill(self._is(concepts, self.concept), 0.0)
        strength = self.strength * self._here(concepts).expand(*kept.shape[:-1], 1).to(kept.dtype)
        index = torch.full_like(strength, self.concept, dtype=torch.int64)
        return concepts._replace(
            strengths=torch.cat([kept, strength], dim=-1), indices=torch.cat([concepts.indices, index], dim=-1)
        )


@dataclass(frozen=True, repr=False)
class Swap(_Somewhere):
    """Let two concepts change places: each gets the other's strength."""

    concept: int
    other: int

    def __call__(self, concepts: Concepts) -> Concepts:
        """Edit."""
        one, two = self._is(concepts, self.concept), self._is(concepts, self.other)
        indices = concepts.indices.masked_fill(one, self.other).masked_fill(two, self.concept)
        return concepts._replace(indices=indices)


ConceptEdits = Sequence[Edit] | Sequence[Sequence[Edit]]
"""Edits of all rows of a batch, or a list of edits for each row."""


def is_by_row(edits: ConceptEdits) -> bool:
    """Whether there is a list of edits for each row."""
    return any(isinstance(each, Sequence) for each in edits)


def edited(concepts: Concepts, edits: ConceptEdits) -> Concepts:
    """Apply edits.

    Raises:
        ValueError: when the edits of rows are not as many as the rows, or a concept does not exist.
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
    """`concept`, if there is one of this number.

    Raises:
        ValueError: otherwise.
    """
    count = concepts.logits.shape[-1]
    if not 0 <= concept < count:
        raise ValueError(f"concept_edits: no concept {concept}; the model has 0 to {count - 1}")
    return concept

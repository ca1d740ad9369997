"""Labels without a model: tokens that separate the positions where a concept fires from the others.

A cue is a token at a relative place: `at` the firing, right before it (it fires `after` the token), right after it (it
fires `before` the token, which the concept cannot see but may predict), or `near`, anywhere earlier in the context.
Cues are ranked by how much more often they occur at the concept's firings than in the whole text and than at other
concepts' firings. Where concepts would have the same label, each gets the cue by which it differs most from the others,
if there is one: as one more, or instead of its weakest.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cocomix.explain.firings import Firings, best_of_each

Place = Literal["at", "after", "before", "near"]
PLACES: tuple[Place, ...] = ("at", "after", "before", "near")

PRIOR = 4.0
"""Prior weight, in firings, of the assumption that a cue is independent of a concept."""
LEAST = 0.25
"""Cues that score below this share of the best cue's score are left out of the label."""
WHITE_SPACE = 0.5
"""Factor of the score of a cue whose token is white space, which says little to a reader."""
AT_A_TIME = 1024
"""Number of concepts whose cues are counted at a time."""


class Cues(NamedTuple):
    """The cues of each concept, best first, padded with -1."""

    numbers: Tensor
    """Index of the place times vocabulary size, plus token: int64 [concepts, most]."""
    weights: Tensor
    """log(share of the firings with the cue / share of all positions with it): float32 [concepts, most]; padding: 0."""

    def score(self, concepts: Tensor, present: Tensor) -> Tensor:
        """The summed weights of the cues that are present: float32 [n].

        Args:
            concepts: int64 [n].
            present: `cues_of` the contexts, [n, m].
        """
        scores = torch.zeros(len(concepts))
        for numbers, weights in zip(self.numbers.T, self.weights.T, strict=True):
            scores += (present == numbers[concepts, None]).any(1) * weights[concepts]
        return scores

    def score_all(self, present: Tensor) -> Tensor:
        """`score` of every concept in the same contexts, to the last bit: float32 [concepts, m].

        Args:
            present: `cues_of` the contexts, [m, ...].
        """
        cues, rows = torch.unique(present, return_inverse=True)
        has = torch.zeros(len(cues), len(present), dtype=torch.bool)
        has[rows, torch.arange(len(present))[:, None]] = True
        at = torch.searchsorted(cues, self.numbers).clamp(max=len(cues) - 1)
        found = self.weights * (cues[at] == self.numbers)
        scores = torch.zeros(len(self.numbers), len(present))
        for row, weights in zip(at.T, found.T, strict=True):
            scores += has[row] * weights[:, None]
        return scores


def cues_of(ids: Tensor, before: int, vocab: int) -> Tensor:
    """The distinct cues of each context: int64 [n, 3 + before - 1], padded with -1.

    Args:
        ids: tokens around the places, [n, before + 1 + after], -1 outside the window; `before` and `after` > 0.
    """
    near = ids[:, : before - 1].sort(1).values
    near = near.masked_fill(F.pad(near[:, 1:] == near[:, :-1], (1, 0)), -1)
    cues = torch.cat([ids[:, [before, before - 1, before + 1]], near], 1)
    place = torch.tensor([0, 1, 2, *[3] * near.shape[1]], device=ids.device)
    return (place * vocab + cues).masked_fill_(cues < 0, -1)


def background_rates(tokens: Tensor, contexts: Tensor) -> Tensor:
    """The share of positions with each cue: float64 [places * vocab].

    Args:
        tokens: number of occurrences of each token: int64 [vocab].
        contexts: `cues_of` positions from the whole text, [m, ...].
    """
    vocab = len(tokens)
    single = (tokens.double() + 0.5) / (tokens.sum() + 0.5 * vocab)
    near = contexts[contexts >= 3 * vocab].sub(3 * vocab).bincount(minlength=vocab)
    return torch.cat([single, single, single, (near.double() + 0.5) / (len(contexts) + 1)])


class _Counts(NamedTuple):
    """How often cues occur at the firings of concepts: arrays of equal length, one entry per pair that occurs."""

    concepts: Tensor
    cues: Tensor
    shares: Tensor
    """Share of the concept's firings with the cue, float64."""
    firings: Tensor
    """Of the concept."""

    def smoothed(self, expected: Tensor) -> Tensor:
        """The shares, with `PRIOR` further firings that have the cue as often as `expected`."""
        return (self.shares * self.firings + PRIOR * expected) / (self.firings + PRIOR)


def best_cues(
    sample: Firings, cues_at: Callable[[Tensor], Tensor], rates: Tensor, visible: Tensor, concepts: int, most: int
) -> Cues:
    """The cues with the largest share * log(share / rate), over a concept's firings.

    The rate is that in the text, or the mean of the concepts' shares if that is larger.

    Args:
        sample: firings, sorted by concept.
        cues_at: `cues_of` the contexts at given places.
        rates: `background_rates`.
        visible: whether the text of each token is more than white space: bool [vocab].
        most: maximum cues per concept.
    """
    numbers = torch.full((concepts, most), -1)
    weights = torch.zeros(concepts, most)
    sizes = sample.concepts.bincount(minlength=concepts)
    factors = torch.where(visible, 1.0, WHITE_SPACE).repeat(len(PLACES))
    usual = torch.zeros(len(rates), dtype=torch.float64)
    part_of = torch.arange(concepts) // AT_A_TIME
    for counts in _counted(sample, part_of, cues_at, sizes, len(rates)):
        usual.index_add_(0, counts.cues, counts.shares)
    usual = torch.maximum(rates, usual / (sizes > 0).sum().clamp(min=1))
    # Counted once more, because the counts of all parts together may not fit into memory.
    for counts in _counted(sample, part_of, cues_at, sizes, len(rates)):
        scores = _scores(counts, usual[counts.cues], factors)
        best = scores.new_zeros(concepts).scatter_reduce(0, counts.concepts, scores, "amax")
        rows, rank = best_of_each(counts.concepts, scores, most)
        enough = (scores[rows] > 0) & (scores[rows] >= LEAST * best[counts.concepts[rows]])
        rows, rank = rows[enough], rank[enough]
        of, cue = counts.concepts[rows], counts.cues[rows]
        numbers[of, rank] = cue
        weights[of, rank] = _weights(counts, rates)[rows]
    _tell_apart(numbers, weights, sample, cues_at, rates, factors)
    return Cues(numbers, weights)


def _counted(
    sample: Firings, part_of: Tensor, cues_at: Callable[[Tensor], Tensor], sizes: Tensor, cues: int
) -> Iterator[_Counts]:
    """Count the cues of one part of the concepts at a time.

    Args:
        part_of: the part of each concept; -1: none.
        sizes: number of firings of each concept in the whole sample.
    """
    parts = part_of[sample.concepts]
    for part in range(int(part_of.max()) + 1):
        some = sample.at((parts == part).nonzero().flatten())
        present = cues_at(some.places)
        keys = some.concepts[:, None] * cues + present
        pairs, counts = torch.unique(keys[present >= 0], return_counts=True)
        of = pairs // cues
        yield _Counts(of, pairs % cues, counts.double() / sizes[of], sizes[of])


def _scores(counts: _Counts, expected: Tensor, factors: Tensor) -> Tensor:
    share = counts.smoothed(expected)
    return share * (share / expected).log() * factors[counts.cues]


def _weights(counts: _Counts, rates: Tensor) -> Tensor:
    rate = rates[counts.cues]
    return (counts.smoothed(rate) / rate).log().float()


def _tell_apart(
    numbers: Tensor,
    weights: Tensor,
    sample: Firings,
    cues_at: Callable[[Tensor], Tensor],
    rates: Tensor,
    factors: Tensor,
) -> None:
    """Give each concept that shares all its cues with others the cue by which it differs most from them, in place.

    The cue takes a free column, or that of the weakest cue. It is more frequent than in the whole text too.
    """
    _, group, members = torch.unique(numbers.sort(1).values, dim=0, return_inverse=True, return_counts=True)
    is_twin = (members[group] > 1) & (numbers[:, 0] >= 0)
    sizes = sample.concepts.bincount(minlength=len(numbers))
    # Each part has whole groups.
    part_of = ((members.cumsum(0) - members) // AT_A_TIME)[group].where(is_twin, -1)
    for counts in _counted(sample, part_of, cues_at, sizes, len(rates)):
        keys, inverse = torch.unique(group[counts.concepts] * len(rates) + counts.cues, return_inverse=True)
        usual = inverse.bincount(counts.shares, minlength=len(keys))[inverse] / members[group[counts.concepts]]
        usual = torch.maximum(rates[counts.cues], usual)
        scores = _scores(counts, usual, factors)
        scores[(numbers[counts.concepts] == counts.cues[:, None]).any(1)] = 0
        rows, _ = best_of_each(counts.concepts, scores, 1)
        rows = rows[scores[rows] > 0]
        of = counts.concepts[rows]
        column = (numbers[of] >= 0).sum(1).clamp(max=numbers.shape[1] - 1)
        numbers[of, column], weights[of, column] = counts.cues[rows], _weights(counts, rates)[rows]


def label_of(numbers: Sequence[int], texts: Sequence[str]) -> str:
    """Cues as text, such as `at " of", " in"; after " one"`.

    Args:
        numbers: the cues of a concept; -1: none.
        texts: the text of each token.
    """
    phrases = []
    for index, place in enumerate(PLACES):
        quoted = [
            json.dumps(texts[each % len(texts)], ensure_ascii=False) for each in numbers if each // len(texts) == index
        ]
        if quoted:
            phrases.append(f"{place} {', '.join(quoted)}")
    return "; ".join(phrases)

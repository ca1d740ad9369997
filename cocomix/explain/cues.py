"""Labels without a model: tokens that separate the positions where a concept fires from the others.

A cue is a token at a relative place: `at` the firing, right before it (it fires `after` the token), right after it (it
fires `before` the token, which the concept cannot see but may predict), or `near`, anywhere earlier in the context.
Cues are ranked by how much more often they occur at the concept's firings than in the whole text.
"""

import json
from collections.abc import Callable, Sequence
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
        numbers = self.numbers[concepts]
        there = (present[:, None] == numbers[:, :, None]).any(2) & (numbers >= 0)
        return (there * self.weights[concepts]).sum(1)


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
    single = (tokens + 0.5) / (tokens.sum() + 0.5 * vocab)
    near = contexts[contexts >= 3 * vocab].sub(3 * vocab).bincount(minlength=vocab)
    return torch.cat([single, single, single, (near + 0.5) / (len(contexts) + 1)])


def best_cues(sample: Firings, cues_at: Callable[[Tensor], Tensor], rates: Tensor, concepts: int, most: int) -> Cues:
    """The cues with the largest share * log(share / background rate), over a concept's firings.

    Args:
        sample: firings, sorted by concept.
        cues_at: `cues_of` the contexts at given places.
        rates: `background_rates`.
        most: maximum cues per concept.
    """
    numbers = torch.full((concepts, most), -1)
    weights = torch.zeros(concepts, most)
    sizes = sample.concepts.bincount(minlength=concepts)
    for first in range(0, concepts, AT_A_TIME):
        some = sample.at(((sample.concepts >= first) & (sample.concepts < first + AT_A_TIME)).nonzero().flatten())
        present = cues_at(some.places)
        keys = some.concepts[:, None] * len(rates) + present
        pairs, counts = torch.unique(keys[present >= 0], return_counts=True)
        of, cue = pairs // len(rates), pairs % len(rates)
        share = (counts + PRIOR * rates[cue]) / (sizes[of] + PRIOR)
        weight = (share / rates[cue]).log()
        scores = share * weight
        best = scores.new_zeros(concepts).scatter_reduce(0, of, scores, "amax")
        rows, rank = best_of_each(of, scores, most)
        enough = (scores[rows] > 0) & (scores[rows] >= LEAST * best[of[rows]])
        rows, rank = rows[enough], rank[enough]
        numbers[of[rows], rank], weights[of[rows], rank] = cue[rows], weight[rows].float()
    return Cues(numbers, weights)


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

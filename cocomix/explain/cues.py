"""Labels without a model: the tokens that tell where a concept fires from where it does not.

A cue is a token at a place: the one that the concept fires `at`, the one that it fires `after`, the one `before` which
it fires (which the concept cannot see, but may foresee), or one that is `near`: earlier in the context. What counts is
how much more often a cue is there when the concept fires than in the text at large.
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
"""Firings' worth of belief that a concept does not care for a token."""
LEAST = 0.25
"""Share of the best cue's score below which a cue is no part of the label."""
AT_A_TIME = 1024
"""Concepts whose cues are counted at a time."""


class Cues(NamedTuple):
    """The cues of each concept, best first; -1 where there is no further one."""

    numbers: Tensor
    """Place times vocabulary plus token: int64 [concepts, most]."""
    weights: Tensor
    """log(share of the firings with the cue / share of all positions with it): float32 [concepts, most]; 0: none."""

    def score(self, concepts: Tensor, present: Tensor) -> Tensor:
        """The summed weights of the cues that are there: float32 [n].

        Args:
            concepts: int64 [n].
            present: `cues_of` the contexts, [n, m].
        """
        numbers = self.numbers[concepts]
        there = (present[:, None] == numbers[:, :, None]).any(2) & (numbers >= 0)
        return (there * self.weights[concepts]).sum(1)


def cues_of(ids: Tensor, before: int, vocab: int) -> Tensor:
    """The cues of some contexts, each once: int64 [n, 3 + before - 1]; -1: none.

    Args:
        ids: of the tokens around the places, [n, before + 1 + after], -1 beyond the window; `before` and `after` > 0.
    """
    near = ids[:, : before - 1].sort(1).values
    near = near.masked_fill(F.pad(near[:, 1:] == near[:, :-1], (1, 0)), -1)
    cues = torch.cat([ids[:, [before, before - 1, before + 1]], near], 1)
    place = torch.tensor([0, 1, 2, *[3] * near.shape[1]], device=ids.device)
    return (place * vocab + cues).masked_fill_(cues < 0, -1)


def background_rates(tokens: Tensor, contexts: Tensor) -> Tensor:
    """The share of positions with each cue: float64 [places * vocab].

    Args:
        tokens: occurrences of each token: int64 [vocab].
        contexts: `cues_of` positions from all over the text, [m, ...].
    """
    vocab = len(tokens)
    single = (tokens + 0.5) / (tokens.sum() + 0.5 * vocab)
    near = contexts[contexts >= 3 * vocab].sub(3 * vocab).bincount(minlength=vocab)
    return torch.cat([single, single, single, (near + 0.5) / (len(contexts) + 1)])


def best_cues(sample: Firings, cues_at: Callable[[Tensor], Tensor], rates: Tensor, concepts: int, most: int) -> Cues:
    """The cues with the largest share among a concept's firings times the logarithm of how much that is above chance.

    Args:
        sample: firings, by concept.
        cues_at: `cues_of` the contexts at some places.
        rates: `background_rates`.
        most: cues of a concept.
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
    """Cues in words, such as `at " of", " in"; after " one"`.

    Args:
        numbers: of the cues of a concept; -1: none.
        texts: of the tokens.
    """
    phrases = []
    for index, place in enumerate(PLACES):
        quoted = [
            json.dumps(texts[each % len(texts)], ensure_ascii=False) for each in numbers if each // len(texts) == index
        ]
        if quoted:
            phrases.append(f"{place} {', '.join(quoted)}")
    return "; ".join(phrases)

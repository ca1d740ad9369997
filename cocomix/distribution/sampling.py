"""Draw tokens from a model's next-token distribution: random-sampling distillation (arXiv 2503.16870).

Sampling is by inverse cumulative distribution, in whole numbers: probabilities are rounded to multiples of 1/2**30, so
that their cumulative sum is exact on any hardware, and a uniform number of 32 bits chooses among them. A token whose
probability rounds to 0 is never drawn. The uniform numbers of a window come from a counter-based generator: they are a
function of the seed, the split and the window's number, whatever batch or process it is in.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.corpus.splits import SPLITS, Split

PROBABILITY_BITS, UNIFORM_BITS = 30, 32
"""The sum of all probabilities stays below 2**31, and its product with a uniform number below 2**63."""
NUMBERS = {"cpu": 2**17, "cuda": 2**26}
"""Logits processed at once, by device; on a CPU, they fit a core's cache."""


class Sample(NamedTuple):
    """Tokens drawn at some positions."""

    ids: Tensor
    """Ascending at each position: int32 [positions, draws]."""
    entropies: Tensor
    """Entropy of the whole distribution, in nats: float32 [positions]."""


def uniforms(seed: int, split: Split, windows: range, positions: int, draws: int) -> NDArray[np.int64]:
    """Uniform numbers below 2**32, ascending at each position: int64 [windows, positions, draws].

    Args:
        windows: numbers of the windows in their split.
    """
    numbers = np.empty((len(windows), positions, draws), np.int64)
    for row, window in zip(numbers, windows, strict=True):
        # The first word of the counter counts the numbers of a window; the others name the window.
        stream = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, window, SPLITS.index(split)]))
        row[:] = np.sort(stream.integers(0, 2**UNIFORM_BITS, (positions, draws), np.uint32), axis=-1)
    return numbers


@torch.no_grad()
def sample(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Sample:
    """Draw a token for each uniform number, from softmax(logits / temperature).

    Args:
        logits: [positions, vocab].
        uniforms: whole numbers below 2**32, ascending at each position: int64 [positions, draws].
    """
    rows = max(1, NUMBERS.get(logits.device.type, NUMBERS["cpu"]) // logits.shape[1])
    parts = zip(torch.split(logits, rows), torch.split(uniforms, rows), strict=True)
    return Sample(*map(torch.cat, zip(*(_sample(*part, temperature) for part in parts), strict=True)))


def _sample(logits: Tensor, uniforms: Tensor, temperature: float) -> Sample:
    logs = torch.log_softmax(logits.float() / temperature, -1)
    probabilities = logs.exp()
    entropies = -torch.linalg.vecdot(probabilities, logs)
    cumulative = probabilities.mul_(2**PROBABILITY_BITS).round_().int().cumsum(-1, dtype=torch.int32)
    chosen = (uniforms * cumulative[:, -1:]) >> UNIFORM_BITS  # below the last sum, however large the uniform number
    return Sample(torch.searchsorted(cumulative, chosen.int(), right=True, out_int32=True), entropies)

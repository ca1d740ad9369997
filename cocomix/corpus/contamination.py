"""Documents that contain a piece of a text to evaluate on: they share 13 words in a row with it.

Runs of 13 words are the usual definition (Brown et al. 2020, arXiv 2005.14165, appendix C). Texts of fewer words are
not looked for.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.runs import run_hashes, word_hashes
from cocomix.plumbing.artifact import write_atomically

WORDS = 13
"""Words of a run."""
_TABLE = np.uint64(1 << 22)
"""Size of a table by which most runs are known at once to be in no benchmark."""


class Benchmarks:
    """The runs of words of some benchmarks, of 8 bytes each.

    Args:
        runs: the hashes of the runs of each benchmark, sorted: uint64 [runs].
    """

    def __init__(self, runs: Mapping[str, NDArray[np.uint64]]) -> None:
        self._runs = list(runs.values())
        every = np.concatenate([np.empty(0, np.uint64), *self._runs])
        self._may = np.zeros(_TABLE, np.bool_)
        self._may[every % _TABLE] = True
        self.names = list(runs)

    def found_in(self, words: NDArray[np.uint64]) -> list[int]:
        """The benchmarks of which a document contains a piece, by their numbers in `names`, ascending.

        Args:
            words: the hashes of its words: see `word_hashes`.
        """
        runs = run_hashes(words, WORDS)
        runs = runs[self._may[runs % _TABLE]]
        return [number for number, each in enumerate(self._runs) if _are_in(runs, each).any()]


def write_benchmarks(texts: Mapping[str, Iterable[str]], path: Path) -> None:
    """Write the runs of words of some benchmarks, given by the texts of each, to an `.npz` file."""
    # Numbered, because the name of a benchmark need not be the name of a file.
    runs = {str(number): _runs_of(each) for number, each in enumerate(texts.values())}
    content = BytesIO()
    np.savez(content, names=np.array(list(texts), np.str_), **runs)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


@cache
def read_benchmarks(path: Path) -> Benchmarks:
    """Read what `write_benchmarks` has written, once in each process."""
    with np.load(path) as found:
        return Benchmarks({str(name): found[str(number)] for number, name in enumerate(found["names"])})


def _runs_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.unique(
        np.concatenate([np.empty(0, np.uint64), *(run_hashes(word_hashes(each), WORDS) for each in texts)])
    )


def _are_in(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values

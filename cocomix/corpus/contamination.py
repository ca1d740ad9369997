"""Documents that contain a piece of a text to evaluate on: they share 13 words in a row with it.

The length of 13 words is GPT-3's (Brown et al. 2020, arXiv 2005.14165, appendix C). Texts of fewer words are not looked
for.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.runs import run_hashes, word_hashes
from cocomix.plumbing.artifact import write_atomically

WORDS = 13
"""Words of a run."""
_TABLE = np.uint64(1 << 22)
"""Size of a table by which most runs are known at once to be in no benchmark."""


class Contamination(NamedTuple):
    """How often the texts of a benchmark were found."""

    documents: int
    """Documents that contain a piece of one."""
    texts: int
    long_texts: int
    """Texts of at least `WORDS` words, which alone can be found."""


class Benchmarks:
    """The runs of words of some benchmarks, of 8 bytes each.

    Args:
        runs: the hashes of the runs of each benchmark, sorted: uint64 [runs].
        texts: number of texts of each benchmark, and of those with at least `WORDS` words.
    """

    def __init__(self, runs: Mapping[str, NDArray[np.uint64]], texts: Mapping[str, tuple[int, int]]) -> None:
        self._runs = list(runs.values())
        self._texts = texts
        every = np.concatenate([np.empty(0, np.uint64), *self._runs])
        self._may = np.zeros(_TABLE, np.bool_)
        self._may[every % _TABLE] = True
        self.names = list(runs)

    def contamination(self, documents: Mapping[int, int]) -> dict[str, Contamination]:
        """The figures of each benchmark, given the number of documents by its number in `names`."""
        return {
            name: Contamination(documents.get(number, 0), *self._texts[name]) for number, name in enumerate(self.names)
        }

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
    runs_of, counts = dict[str, NDArray[np.uint64]](), list[tuple[int, int]]()
    for number, each in enumerate(texts.values()):
        of_texts = [run_hashes(word_hashes(text), WORDS) for text in each]
        runs_of[str(number)] = np.unique(np.concatenate([np.empty(0, np.uint64), *of_texts]))
        counts.append((len(of_texts), sum(len(runs) > 0 for runs in of_texts)))
    content = BytesIO()
    np.savez(content, names=np.array(list(texts), np.str_), counts=np.array(counts), **runs_of)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


@cache
def read_benchmarks(path: Path) -> Benchmarks:
    """Read what `write_benchmarks` has written, once in each process."""
    with np.load(path) as found:
        names = [str(name) for name in found["names"]]
        counts = [(int(texts), int(long)) for texts, long in found["counts"]]
        runs = {name: found[str(number)] for number, name in enumerate(names)}
        return Benchmarks(runs, dict(zip(names, counts, strict=True)))


def _are_in(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values

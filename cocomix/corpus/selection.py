"""Choose the documents of the corpus: no repeats, no near-duplicates, no texts of benchmarks, up to a limit."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cocomix.corpus.contamination import Contamination, read_benchmarks
from cocomix.corpus.near_duplicates import VALUES, repeats
from cocomix.corpus.parts import Marks, read_part, read_signatures
from cocomix.corpus.splits import SPLITS, Split
from cocomix.corpus.store import SCHEMA
from cocomix.params import CorpusParams


class Chosen(NamedTuple):
    """The documents of a part that are kept."""

    path: Path
    rows: NDArray[np.int32]
    splits: NDArray[np.int8]
    """Of each row, as an index of `SPLITS`."""

    def tables(self) -> Iterator[tuple[Split, pa.Table]]:
        """Yield the documents by split, as `CorpusWriter.add` takes them."""
        table = read_part(self.path, *SCHEMA.names, "bytes")
        for number, split in enumerate(SPLITS):
            yield split, table.take(self.rows[self.splits == number])


class Selection(NamedTuple):
    """Which documents are kept."""

    parts: list[Chosen]
    dropped: Counter[str]
    """Number of dropped documents by kind."""
    contaminated: dict[str, Contamination] | None
    """Documents with a piece of each benchmark, dropped or not, within the limit; None: they were not looked for."""
    first_beyond: tuple[str, int] | None
    """Source and bytes of the first document beyond the limit."""


def select(
    parts: Iterable[Path], params: CorpusParams, marks: Marks, assign: Callable[[int, str], Split], folder: Path
) -> Selection:
    """Choose documents part by part, in order, until their text has as many bytes as `params.limit` allows.

    Repeats are found by 8-byte digests. The probability that any two of N documents collide is N^2 / 2^65: 2e-6 for
    eight million. A document takes 80 to 110 bytes of memory; where near-duplicates are looked for, 70 more, and 520
    on disk and more (see `repeats`). They are looked for in the text within the limit.

    Args:
        assign: returns the split of a document with this digest, of this group.
        folder: of temporary files.
    """
    seen = set[int]()
    kept = array("Q")
    dropped = Counter[str]({"contaminated documents": 0} if params.decontaminate == "drop" else {})
    benchmarks = read_benchmarks(marks.benchmarks) if marks.benchmarks else None
    contaminated = Counter[int]()
    chosen = list[Chosen]()
    first_beyond = None
    _, left = params.limit
    signatures = folder / "signatures"
    with signatures.open("wb") as signed:
        for path in parts:
            columns = read_part(path, "id", "group", "bytes", *(["found"] if benchmarks else [])).to_pydict()
            rows, splits = list[int](), list[int]()
            found = columns.get("found", [[]] * len(columns["id"]))
            each = zip(columns["id"], columns["group"], columns["bytes"], found, strict=True)
            for row, (name, group, size, pieces) in enumerate(each):
                digest = int(name, 16)
                if not size:
                    dropped["empty documents"] += 1
                    continue
                if digest in seen:
                    dropped["repeated documents"] += 1
                    continue
                seen.add(digest)
                is_dropped = pieces and params.decontaminate == "drop"
                if not is_dropped:
                    left -= size
                if left < 0:
                    first_beyond = (read_part(path, "source")["source"][row].as_py(), size)
                    break
                contaminated.update(pieces)
                if is_dropped:
                    dropped["contaminated documents"] += 1
                    continue
                rows.append(row)
                splits.append(SPLITS.index(assign(digest, group)))
                kept.append(digest)
            chosen.append(Chosen(path, np.array(rows, np.int32), np.array(splits, np.int8)))
            if marks.signature:
                read_signatures(path)[rows].tofile(signed)
            if first_beyond:
                break
    if marks.signature and kept:
        values = np.memmap(signatures, np.uint32, "r").reshape(-1, VALUES)
        assert params.near_duplicates is not None
        repeated = repeats(values, np.frombuffer(kept, np.uint64), params.near_duplicates, folder)
        dropped["near-duplicates"] += int(repeated.sum())
        chosen = _without(chosen, repeated)
    signatures.unlink()
    found_of = benchmarks.contamination(contaminated) if benchmarks else None
    return Selection(chosen, dropped, found_of, first_beyond)


def _without(parts: list[Chosen], repeated: NDArray[np.bool_]) -> list[Chosen]:
    ends = np.cumsum([len(each.rows) for each in parts])
    return [
        Chosen(each.path, each.rows[~drop], each.splits[~drop])
        for each, drop in zip(parts, np.split(repeated, ends[:-1]), strict=True)
    ]

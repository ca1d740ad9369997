"""Long work in parts that are kept: a process that is killed loses the part that it was at.

Parts stand for themselves (`in_parts`), and processes share them; or they are batches that are summed one after the
other (`Summing`), where sums of sums would round in another way.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime

Part = TypeVar("Part")
Batch = TypeVar("Batch", bound=Sized)
Advance = Callable[[int], None]

SECONDS = 5.0
"""After which sums are saved: what is lost at most."""


def in_parts(
    parts: Mapping[Path, Part],
    compute: Callable[[Part, Advance], bytes],
    size: Callable[[Part], int],
    task: str,
    unit: str,
) -> None:
    """Make the files that are not there yet, and wait until all are. Several processes, which call it together, share
    them.

    Args:
        parts: by the file of each, in a folder of exactly this work.
        compute: the content of a part's file; it may call what it is given with as many units as are done, time and
            again. A stop is obeyed there, and once a part is written.
        size: units in a part.
        task: for the progress, as is `unit`.
    """
    there = distributed.from_first([path.exists() for path in parts])
    mine = list(zip(parts.items(), there, strict=True))[runtime().rank :: runtime().world_size]
    total, done = sum(size(part) for (_, part), _ in mine), sum(size(part) for (_, part), is_there in mine if is_there)
    with progress(task, total, unit, done) as bar:
        for path, part in (each for each, is_there in mine if not is_there):
            left = size(part)

            def advance(amount: int) -> None:
                nonlocal left
                left -= amount
                bar.advance(amount)

            write_atomically(path, compute(part, advance))
            if left:
                bar.advance(left)
    distributed.barrier()
    for path in parts:
        distributed.see(path)


class Summing(Generic[Batch]):
    """The batches that are still to be added to sums: iterate, and add each in place before the next one.

    What an earlier process has added is in the sums from the beginning. As the order is the same, so is the result, to
    the bit.

    Args:
        kept: the beginning of the names of the files, of exactly this measurement; none: nothing is kept.
        batches: of this process, all in their order.
        sums: arrays of zeros.
    """

    def __init__(self, kept: Path | None, batches: Sequence[Batch], *sums: NDArray[Any]) -> None:
        self._batches, self._sums, self._file = batches, sums, None
        self.done: Sequence[Batch] = []
        """Those that an earlier process has added."""
        if kept:
            # Of another number of processes, or another micro-batch, are other batches.
            which = [runtime().rank, runtime().world_size, *map(len, batches)]
            digest = hashlib.sha256(json.dumps(which).encode()).hexdigest()[:16]
            self._file = kept.with_name(f"{kept.name}-{digest}.sums")
            if self._file.exists():
                found = load(self._file.read_bytes())
                self.done = batches[: int(found["done"])]
                for number, each in enumerate(sums):
                    each[...] = found[str(number)]

    def __iter__(self) -> Iterator[Batch]:
        saved = time.monotonic()
        for number in range(len(self.done), len(self._batches)):
            yield self._batches[number]
            is_last = number + 1 == len(self._batches)
            if self._file and (is_last or time.monotonic() - saved > SECONDS):
                content = {"done": np.array(number + 1)} | {str(n): each for n, each in enumerate(self._sums)}
                write_atomically(self._file, save(content))
                saved = time.monotonic()

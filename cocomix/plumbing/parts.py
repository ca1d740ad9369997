"""Long work in parts whose results are kept: a killed process loses only the part that it was computing.

Parts are independent and shared by the processes (`in_parts`), or are batches summed in order (`Summing`), where adding
up partial sums would round differently.
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
"""Interval at which sums are saved; a killed process loses at most this much work."""


def in_parts(
    parts: Mapping[Path, Part],
    compute: Callable[[Part, Advance], bytes],
    size: Callable[[Part], int],
    task: str,
    unit: str,
) -> None:
    """Write the files that are missing and wait until all exist; all processes must call it, and share the parts.

    Args:
        parts: by file, in a folder that belongs to exactly this work.
        compute: returns the content of a part's file. It may call its second argument repeatedly with the number of
            units done since the last call; there, and after each part, the process obeys a stop signal.
        size: number of units in a part.
        task: description for the progress bar.
        unit: name of a unit there.
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
    """Iterates over the batches still to be summed; the caller adds each to `sums`, in place, before the next one.

    The sums start from those that an earlier process saved. The order is the same, so the result is bit-identical.

    Args:
        kept: path prefix of the saved sums, for exactly this measurement; None: nothing is saved.
        batches: all batches of this process, in order.
        sums: arrays of zeros.
    """

    def __init__(self, kept: Path | None, batches: Sequence[Batch], *sums: NDArray[Any]) -> None:
        self._batches, self._sums, self._file = batches, sums, None
        self.done: Sequence[Batch] = []
        """Batches that an earlier process has added."""
        if kept:
            # Another number of processes or another micro-batch gives other batches.
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

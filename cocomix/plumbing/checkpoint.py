"""Training checkpoints: each is complete or absent; if the newest is damaged, the one before it is loaded.

A checkpoint is as large as the training state, so saving and loading make no second copy in memory.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from cocomix.plumbing import distributed, interrupt
from cocomix.plumbing.artifact import digest_of, rename
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import say
from cocomix.plumbing.runtime import runtime

KEPT = 2
PIECE = 2**23
"""Bytes per write; the process reports that it is alive after each sync to disk."""


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Save `state` (tensors, numbers, text, and containers of them) as the checkpoint after `step` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".checkpoint.aside"
    with aside.open("wb") as file, ThreadPoolExecutor(1) as hasher, _without_checksums():
        out = _Digesting(file, hasher)
        torch.save(state, out)  # type: ignore[arg-type]  # it only calls write
        out.sync()
    # The digest is part of the name, so one rename publishes both.
    rename(aside, folder / f"step-{step:09d}-{out.digest.hexdigest()[:16]}.pt")
    for old in _newest_first(folder)[KEPT:]:
        os.unlink(old)


class _Digesting:
    """A file object that hashes its content while it is written."""

    def __init__(self, file: IO[bytes], hasher: ThreadPoolExecutor) -> None:
        self.digest = hashlib.sha256()
        self._file, self._hasher, self._unsynced = file, hasher, 0

    def write(self, content: memoryview) -> int:
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            hashed = self._hasher.submit(self.digest.update, piece) if len(piece) > 2**16 else None
            self._file.write(piece)
            self._unsynced += len(piece)
            if self._unsynced >= PIECE:
                self.sync()
            if hashed:
                hashed.result()
            else:
                self.digest.update(piece)
        return len(content)

    def sync(self) -> None:
        self.flush()
        os.fsync(self._file)
        self._unsynced = 0
        interrupt.alive()

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def _without_checksums() -> Iterator[None]:
    """Disable torch.save's checksums: torch.load never compares them, and the digest is stronger."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def newest(folder: Path) -> Path | None:
    """The path of the newest checkpoint, or None."""
    return next(iter(_newest_first(folder)), None)


def load(folder: Path) -> dict[str, Any] | None:
    """Load the newest intact checkpoint, or None; all processes must call it, and rank 0 chooses the checkpoint.

    Damaged checkpoints are removed: otherwise `save` would keep them instead of intact ones. The tensors are
    memory-mapped, copy on write: the processes of one machine share unmodified pages.

    Raises:
        UserError: when another process does not find the checkpoint that rank 0 found.
    """
    state = None
    for path in _newest_first(folder) if runtime().rank == 0 else []:
        if (state := _read(path)) is not None:
            break
        say(f"warning: {path} is damaged; going on from the checkpoint before it")
        path.unlink()
    which = distributed.from_first(None if state is None else path)
    if which is not None and state is None:
        state = _read(distributed.see(which))
        if state is None:
            raise UserError(f"{which}: process {runtime().rank} reads something else than the first; share the folder")
    return state


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a checkpoint file; None: the file is damaged."""
    # An UnpicklingError: the file holds types that `save` never writes. They are not loaded, as they could run code.
    with suppress(UnpicklingError):
        if digest_of(path)[:16] == path.stem.rpartition("-")[2]:
            return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((each for each in folder.glob("step-*.pt") if each.is_file()), reverse=True)

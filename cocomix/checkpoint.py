"""Training checkpoints: whole or not there; a damaged newest one falls back to the one before."""

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cocomix.artifact import write_atomically
from cocomix.progress import say

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Save `state` (tensors, numbers, text, and containers of them) as the checkpoint after `step` steps."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()  # no copy
    # The digest is part of the name: one rename makes both true.
    write_atomically(folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt", content)
    for old in _newest_first(folder)[KEPT:]:
        os.unlink(old)


def newest(folder: Path) -> Path | None:
    """The file of the newest checkpoint; none: None."""
    return next(iter(_newest_first(folder)), None)


def load(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole; none: None. Damaged ones are removed: they would be kept in
    the place of whole ones."""
    for path in _newest_first(folder):
        # No file: another process of this training has found it damaged, and removed it. Not unpickled: it holds more
        # than `save` writes, which is not read: it could run.
        with suppress(FileNotFoundError, UnpicklingError):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] == path.stem.rpartition("-")[2]:
                return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        say(f"warning: {path} is damaged; going on from the checkpoint before it")
        path.unlink(missing_ok=True)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((each for each in folder.glob("step-*.pt") if each.is_file()), reverse=True)

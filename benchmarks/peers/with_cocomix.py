"""Ours: `SaeTraining` on activations that lie in memory."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from driver import batches, finish, now, setting
from torch import Tensor

from cocomix.params import SaeParams, Site
from cocomix.plumbing.allocator import keep_freed_memory
from cocomix.sae.training import SaeTraining, Wanted

S = setting()
keep_freed_memory()
asked: list[float] = []


def in_order(_split: str, size: int, **_order: Any) -> Iterator[Tensor]:
    """The batches, noting when each is asked for."""
    for x in batches(size):
        asked.append(now())
        yield x


store = SimpleNamespace(
    d_model=S.d_model,
    layer=1,
    site=Site("resid_post", 1),
    rows=lambda _split: S.steps * S.batch_size,
    batches=in_order,
)
params = SaeParams(
    latents=S.latents,
    k=S.k,
    epochs=1,
    batch_size=S.batch_size,
    learning_rate=S.learning_rate,
    warmup_share=S.warmup_steps / S.steps,
    decay_share=S.decay_steps / S.steps,
    aux_k=64,
    dead_tokens=10_000_000,
    normalize="none",
    checkpoint_every=S.steps,
)
with tempfile.TemporaryDirectory() as scratch:
    training = SaeTraining([Wanted(store, params)], Path(scratch))  # type: ignore[arg-type]
    training.run()
steps = asked[-S.steps :]
finish([after - before for before, after in itertools.pairwise(steps[1:])], training.learners[0].sae)

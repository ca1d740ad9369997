"""Train one or more sparse autoencoders together, in one or a few passes over the activations."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import Signals
from typing import NamedTuple

from torch import Tensor

from cocomix.activations.store import ActivationStore
from cocomix.params import SaeParams, Site
from cocomix.plumbing import checkpoint, distributed
from cocomix.plumbing.device import device
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import progress, say
from cocomix.plumbing.runtime import runtime
from cocomix.sae.learner import Learner, SaeCurveRow

SAMPLE_ROWS = 32_768
"""Activations in the sample that sets the initial bias and the scale of the loss (Gao et al., App. A.1)."""


class Wanted(NamedTuple):
    """An autoencoder to train."""

    store: ActivationStore
    """The activations of its site."""
    params: SaeParams


class SaeTraining:
    """A training run of one or more autoencoders, which all see the same positions in the same order.

    Args:
        wanted: their stores must have the same rows, as the sites of one artifact do; epochs, batch_size, seed and
            checkpoint_every are taken from the first.
        folder: the folder of the checkpoints, also of those of an earlier process.

    Raises:
        UserError: when the store holds less than one batch, or batch_size is below the number of processes.
    """

    def __init__(self, wanted: Sequence[Wanted], folder: Path) -> None:
        self._wanted, self._folder = wanted, folder
        store, self._params = wanted[0]
        size, rows = self._params.batch_size, store.rows("train")
        self._epoch_steps = rows // size
        if not self._epoch_steps:
            raise UserError(f"sae.batch_size: {size}: the store holds {rows} activations")
        if size < runtime().world_size:
            raise UserError(f"sae.batch_size: {size}: must not be below the processes ({runtime().world_size})")
        self._saved_step = -1
        self._steps = self._params.epochs * self._epoch_steps
        tokens = self._steps * size
        for each in sorted({params.dead_tokens for _, params in wanted if params.aux_weight}):
            if each >= tokens:
                say(f"sae.dead_tokens: {each:,}: training ends after {tokens:,}: no latent dies, and AuxK never acts")
        self.learners = [Learner(each.params, each.store.site, each.store.d_model, self._steps) for each in wanted]

    def run(self) -> None:
        """Train to the end, from the newest checkpoint if there is one."""
        self._begin()
        first, size = self.learners[0], self._params.batch_size
        stores = {store.site: store for store, _ in self._wanted}
        with progress("sae", self._steps * size, "tokens", first.step * size, lockstep=True) as bar:
            while first.step < self._steps:
                epoch, start = divmod(first.step, self._epoch_steps)
                orders = [
                    store.batches("train", size, seed=self._params.seed, epoch=epoch, start=start)
                    for store in stores.values()
                ]
                try:
                    for batches in _together(zip(*orders, strict=True)):
                        self._learn(dict(zip(stores, batches, strict=True)))
                        if first.step % self._params.checkpoint_every == 0 or first.step == self._steps:
                            self._save()
                        bar.advance(size, **first.shown())
                except Interrupted:
                    self._save()
                    raise

    def _learn(self, batches: dict[Site, Tensor]) -> None:
        """Train all autoencoders one step, on this process's share of a batch [batch_size, d_model] of each site.

        All shares have the same size, so that the mean of their losses is the loss; a remainder is left out.
        """
        end = self._params.batch_size // runtime().world_size * runtime().world_size
        own = slice(runtime().rank, end, runtime().world_size)
        shares = {site: batch[own].to(device()) for site, batch in batches.items()}
        for (store, _), learner in zip(self._wanted, self.learners, strict=True):
            learner.learn(shares[store.site])

    def _begin(self) -> None:
        if state := checkpoint.load(self._folder):
            for learner, each in zip(self.learners, state["learners"], strict=True):
                learner.restore(each)
            say(f"sae: going on from step {self.learners[0].step}")
            return
        for (store, _), learner in zip(self._wanted, self.learners, strict=True):
            rows = min(SAMPLE_ROWS, store.rows("train"))
            (sample,) = next(_together(zip(store.batches("train", rows, seed=self._params.seed))))
            learner.initialise(sample.to(device()))
            # The same arithmetic may round differently on another machine.
            distributed.average(*learner.sae.state_dict().values())

    def _save(self) -> None:
        if runtime().rank == 0 and self.learners[0].step != self._saved_step:
            self._saved_step = self.learners[0].step
            state = {"learners": [each.state() for each in self.learners]}
            checkpoint.save(self._folder, self.learners[0].step, state)


def _together(batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Yield each batch once all processes have theirs, so that a stop received by one process stops all of them.

    Raises:
        Interrupted: in all processes, before the same batch.
    """
    while True:
        batch, stop = None, 0
        try:
            batch = next(batches, None)
        except Interrupted as interrupted:
            stop = interrupted.received
        if stop := distributed.maximum(stop):
            raise Interrupted(Signals(stop))
        if batch is None:
            return
        yield batch


def write_curve(path: Path, curve: list[SaeCurveRow]) -> None:
    """Write the curve as CSV, one column per field."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SaeCurveRow._fields)
        writer.writerows(curve)

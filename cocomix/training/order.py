"""The order of the training windows: a function of (seed, step), so that a resumed run needs no loader state."""

import numpy as np
from numpy.typing import NDArray


class WindowOrder:
    """Every window once per epoch, each epoch in its own random order.

    Args:
        windows: number of training windows.
        batch_size: windows per step.
    """

    def __init__(self, windows: int, batch_size: int, seed: int) -> None:
        self._windows, self._batch_size, self._seed = windows, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Window numbers of a step (from 0), which may span the end of an epoch: [batch_size]."""
        start = step * self._batch_size
        places = np.arange(start, start + self._batch_size)
        batch = np.empty_like(places)
        for epoch in np.unique(places // self._windows):
            here = places // self._windows == epoch
            batch[here] = self._of_epoch(int(epoch))[places[here] % self._windows]
        return batch

    def _of_epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._epoch, self._permutation = (
                epoch,
                np.random.default_rng([self._seed, epoch]).permutation(self._windows),
            )
        return self._permutation

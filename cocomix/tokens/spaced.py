"""Evenly spaced items, where a few of many are looked at."""

import numpy as np
from numpy.typing import NDArray


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """The indices of at most `most` evenly spaced items of `count`, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))

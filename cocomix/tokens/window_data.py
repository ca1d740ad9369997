"""Token windows as batches of tensors, with the labels of their positions."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class WindowData:
    """Token windows, with the concept labels of their positions where the method uses them."""

    windows: NDArray[np.unsignedinteger]
    """[windows, context]."""
    labels: NDArray[np.unsignedinteger] | None = None
    """[windows, context, k_attr]; the dtype's largest value: no label."""

    def batch(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, ...]:
        """The arguments of an objective, on the CPU: windows, and labels if there are any; both int64."""
        batch = [self.windows[rows].astype(np.int64)]
        if self.labels is not None:
            labels = self.labels[rows]
            batch.append(np.where(labels == np.iinfo(labels.dtype).max, -1, labels.astype(np.int64)))
        return tuple(torch.from_numpy(each) for each in batch)

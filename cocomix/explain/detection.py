"""How good a label is: whether it tells held-out contexts in which its concept fires from others."""

from typing import NamedTuple

import torch
from torch import Tensor

AT_A_TIME = 64
"""Concepts whose contexts are compared at a time."""


class Detection(NamedTuple):
    """Of each concept; NaN where it does not fire in the held-out text, or everywhere."""

    auc: Tensor
    """The share of pairs of a firing and another context of which the label favours the firing one: float32 [concepts].

    0.5 is chance."""
    balanced_accuracy: Tensor
    """The mean of the shares of firing and of other contexts that the label is right on: float32 [concepts]."""
    firings: Tensor
    """Held-out firings that were scored: int64 [concepts]."""


def detection(firing: Tensor, others: Tensor) -> Detection:
    """Compare the scores that labels give to contexts; a context with a score above 0 is said to be firing.

    Args:
        firing: where the concept fires, [concepts, n]; NaN: no further context.
        others: where it does not, [concepts, m]; NaN so too.
    """
    auc = []
    for yes, no in zip(torch.split(firing, AT_A_TIME), torch.split(others, AT_A_TIME), strict=True):
        above = (yes[:, :, None] > no[:, None]) + 0.5 * (yes[:, :, None] == no[:, None])
        pairs = ~(yes[:, :, None].isnan() | no[:, None].isnan())
        auc.append((above * pairs).sum((1, 2)) / pairs.sum((1, 2)))
    right, wrong = ((each > 0).sum(1) / (~each.isnan()).sum(1) for each in (firing, others))
    return Detection(torch.cat(auc), (right + 1 - wrong) / 2, (~firing.isnan()).sum(1))

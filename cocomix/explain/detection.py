"""Detection scores of labels: how well a label separates held-out firings of its concept from other contexts."""

from typing import NamedTuple

import torch
from torch import Tensor

AT_A_TIME = 1024
"""Number of concepts whose contexts are compared at a time."""


class Detection(NamedTuple):
    """Scores of each concept's label; NaN where the concept fires nowhere, or everywhere, in the held-out text."""

    auc: Tensor
    """Share of (firing, other context) pairs in which the label scores the firing higher: float32 [concepts].

    0.5 is chance; ties count as a half."""
    balanced_accuracy: Tensor
    """Mean of the true positive rate and the true negative rate: float32 [concepts]."""
    firings: Tensor
    """Number of held-out firings that were scored: int64 [concepts]."""


def detection(firing: Tensor, others: Tensor) -> Detection:
    """Compare the scores that labels give to contexts; a score above 0 predicts that the concept fires.

    Args:
        firing: scores where the concept fires, [concepts, n]; NaN is padding.
        others: scores where it does not, [concepts, m]; NaN is padding.
    """
    auc = []
    for yes, no in zip(torch.split(firing, AT_A_TIME), torch.split(others, AT_A_TIME), strict=True):
        numbers = (~no.isnan()).sum(1, keepdim=True)
        ordered = no.nan_to_num(nan=torch.inf).sort(1).values
        lower, not_higher = (torch.searchsorted(ordered, yes, right=right) for right in (False, True))
        twice_above = (lower + not_higher.minimum(numbers)).masked_fill(yes.isnan(), 0)
        pairs = (~yes.isnan()).sum(1) * numbers[:, 0]
        auc.append(twice_above.sum(1) / (2 * pairs))
    right, wrong = ((each > 0).sum(1) / (~each.isnan()).sum(1) for each in (firing, others))
    return Detection(torch.cat(auc), (right + 1 - wrong) / 2, (~firing.isnan()).sum(1))

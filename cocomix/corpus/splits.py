"""The three splits of a corpus."""

from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LABELLED: tuple[Split, ...] = ("train", "validation")
"""Those whose positions have concept labels and draws."""
EVALUATED: tuple[Split, ...] = ("validation", "test")
"""Those on which models are measured after training."""

"""Training a language model: one loop, one objective a method."""

from cocomix.training.loop import CurveRow, Training, WindowData, write_curve
from cocomix.training.objectives import ConceptMixing, Distillation, HiddenMixing, NextToken, Objective

__all__ = [
    "ConceptMixing",
    "CurveRow",
    "Distillation",
    "HiddenMixing",
    "NextToken",
    "Objective",
    "Training",
    "WindowData",
    "write_curve",
]

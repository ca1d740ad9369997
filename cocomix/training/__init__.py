"""Training a language model: one loop, one objective a method."""

from cocomix.training.loop import CurveRow, Training, WindowData, write_curve
from cocomix.training.objectives import ConceptMixing, NextToken, Objective

__all__ = ["ConceptMixing", "CurveRow", "NextToken", "Objective", "Training", "WindowData", "write_curve"]

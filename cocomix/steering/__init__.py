"""Reading the concepts that a model predicts, and changing them.

The names here are the public interface, which docs/steering.md describes; ours import from the modules.
"""

from cocomix.modeling.concept_edits import Ablate, Scale, Set, Swap
from cocomix.steering.autoencoder import concepts_edited
from cocomix.steering.reading import concepts

__all__ = ["Ablate", "Scale", "Set", "Swap", "concepts", "concepts_edited"]

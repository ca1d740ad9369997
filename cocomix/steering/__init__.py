"""Reading the concepts that a model predicts, and changing them."""

from cocomix.modeling.concept_edits import Ablate, ConceptEdits, Concepts, Edit, Scale, Set, Swap
from cocomix.steering.autoencoder import concepts_edited
from cocomix.steering.reading import Concept, Extractor, Position, concepts, information_gain

__all__ = [
    "Ablate",
    "Concept",
    "ConceptEdits",
    "Concepts",
    "Edit",
    "Extractor",
    "Position",
    "Scale",
    "Set",
    "Swap",
    "concepts",
    "concepts_edited",
    "information_gain",
]

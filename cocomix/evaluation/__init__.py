"""Measuring finished models."""

from cocomix.evaluation.language_model import ConceptScore, LanguageModelScore, score_concepts, score_language_model

__all__ = ["ConceptScore", "LanguageModelScore", "score_concepts", "score_language_model"]

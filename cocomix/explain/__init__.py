"""What concepts mean: the atlas of a dictionary."""

from cocomix.explain.atlas import Atlas, Card, Context, Found

__all__ = ["Atlas", "Card", "Context", "Found"]

"""Typed results as JSON."""

from typing import Any


def plain(value: Any) -> Any:
    """Convert named tuples to mappings, recursively in lists and named tuples."""
    if hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    return [plain(each) for each in value] if isinstance(value, list) else value

"""Typed results as JSON."""

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Convert named tuples to mappings, recursively in lists, mappings and named tuples."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value

"""The types of numbers, by their ranges."""

from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0, le=2**40)]
Size = Annotated[int, Field(gt=0, le=2**24)]
"""A dimension or count of things that are in memory at once."""
LAYERS = 2**10
"""Most blocks of a model."""
Layers = Annotated[int, Field(gt=0, le=LAYERS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]

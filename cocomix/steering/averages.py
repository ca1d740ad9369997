"""What steering does: the effects of the stage `steer`, averaged over concepts and seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cocomix.statistics import Interval, paired_difference

Values = NDArray[np.float64]
"""[seeds, concepts]."""


class OwnAndControl(NamedTuple):
    """A concept under its own edit, and under those of the other concepts: the control."""

    own: Interval
    control: float
    difference: Interval
    """Own less control."""


class MeanEffects(NamedTuple):
    """What one strength does: means over concepts and seeds, with their intervals."""

    strength: float
    success: OwnAndControl
    """Share of the concepts whose tokens become likelier by a positive strength, or less likely by a negative one."""
    log_ratio: OwnAndControl
    """Of the probability of those tokens, over that without an edit."""
    read: OwnAndControl
    """Share of the generated tokens at which the autoencoder finds the concept, less that without an edit."""
    loss: Interval
    """Change of the loss on text, nats a token."""
    distinct: Interval
    """Change of the share of different pairs of neighbours among generated tokens."""


class Sweep(NamedTuple):
    """One way of steering one kind of model."""

    name: str
    concepts: int
    effects: list[MeanEffects]
    """By rising strength."""


def read_sweeps(path: Path) -> list[Sweep]:
    """The sweeps of a table that the stage `steer` has written: a row a sweep, seed, strength and concept, in order."""
    table = pq.read_table(path)
    names: list[Any] = table["sweep"].unique().to_pylist()
    return [_sweep(name, table.filter(pc.field("sweep") == name)) for name in names]


def _sweep(name: str, rows: pa.Table) -> Sweep:
    strengths: list[Any] = rows["strength"].unique().to_pylist()
    seeds, concepts = (len(rows[each].unique()) for each in ("seed", "concept"))
    columns = {
        each: rows[each].to_numpy().reshape(seeds, len(strengths), concepts).astype(np.float64)
        for each in rows.column_names[rows.column_names.index("concept") + 1 :]
    }
    effects = [
        _effects(strength, {each: values[:, number] for each, values in columns.items()})
        for number, strength in enumerate(strengths)
    ]
    return Sweep(name, concepts, sorted(effects))


def _effects(strength: float, columns: Mapping[str, Values]) -> MeanEffects:
    """Of one strength; columns [seeds, concepts]."""
    ratio = np.log(columns["probability"] / columns["probability_unedited"])
    control_ratio = np.log(columns["probability_control"] / columns["probability_unedited"])
    read, control_read = (columns[each] - columns["read_unedited"] for each in ("read", "read_control"))
    return MeanEffects(
        strength=strength,
        success=_figure(columns["success"], columns["success_control"], 0, 1),
        log_ratio=_figure(ratio, control_ratio),
        read=_figure(read, control_read, -1, 1),
        loss=_difference(columns["loss"], columns["loss_unedited"]),
        distinct=_difference(columns["distinct"], columns["distinct_unedited"]).within(-1, 1),
    )


def _figure(own: Values, control: Values, low: float = -np.inf, high: float = np.inf) -> OwnAndControl:
    """Of a figure that is from `low` to `high`."""
    alone = _difference(own, np.zeros_like(own)).within(low, high)
    return OwnAndControl(alone, float(control.mean()), _difference(own, control).within(low - high, high - low))


def _difference(values: Values, others: Values) -> Interval:
    found = paired_difference(values, others, np.ones(values.shape[1]))
    assert found is not None, "a concept alone has no control"
    return found

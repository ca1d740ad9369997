"""Effects of steering from the stage `steer`, averaged over concepts and seeds."""

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
    """An effect on a concept of its own edit, and of the edits of other concepts (the control)."""

    own: Interval
    control: float
    difference: Interval
    """Own minus control."""


class MeanEffects(NamedTuple):
    """Effects of one strength: means over concepts and seeds, with intervals."""

    strength: float
    success: OwnAndControl
    """Share of the concepts whose tokens a positive strength makes more likely, or a negative one less likely."""
    log_ratio: OwnAndControl
    """Log of the ratio of the probability of those tokens to that without an edit."""
    read: OwnAndControl
    """Share of the generated tokens at which the autoencoder finds the concept, minus that without an edit."""
    loss: Interval
    """Change of the loss on text, in nats per token."""
    distinct: Interval
    """Change of distinct-2, the share of distinct bigrams among the generated tokens."""


class Sweep(NamedTuple):
    """One type of edit on one type of model, at several strengths."""

    name: str
    concepts: int
    effects: list[MeanEffects]
    """Sorted by strength."""


def read_sweeps(path: Path) -> list[Sweep]:
    """Read the sweeps in a table of the stage `steer`, whose rows are by sweep, seed, strength and concept."""
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
    """Mean effects of one strength; columns are [seeds, concepts]."""
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
    """Means and intervals of a figure bounded by `low` and `high`."""
    alone = _difference(own, np.zeros_like(own)).within(low, high)
    return OwnAndControl(alone, float(control.mean()), _difference(own, control).within(low - high, high - low))


def _difference(values: Values, others: Values) -> Interval:
    found = paired_difference(values, others, np.ones(values.shape[1]))
    assert found is not None, "a concept alone has no control"
    return found

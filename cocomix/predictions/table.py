"""The table of the language models' predictions of concepts; the stage `steer` writes it, `reader.py` reads it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from cocomix.predictions.measure import ConceptPredictions

PREDICTED = "predicted.parquet"
BEFORE, AFTER = 16, 8
"""Maximum tokens shown before and after the position, within its window."""

_CONTEXT: dict[str, Any] = {
    "strength": pa.float32(),  # the concept's logit
    "right": pa.bool_(),  # whether it is a label there
    "window": pa.int64(),  # index in the validation split
    "position": pa.int32(),  # in the window
    "start": pa.int32(),  # position of the first token shown
    "tokens": pa.list_(pa.int32()),
}
_COLUMNS: dict[str, pa.DataType] = {
    "model": pa.string(),  # <method>-<seed>
    "concept": pa.int32(),
    "positions": pa.int64(),  # number that were read
    "predictions": pa.int64(),  # number of them at which it is among the concept_k predicted concepts
    "right": pa.int64(),  # number of these predictions at which it is a label
    "labelled": pa.int64(),  # number of positions at which it is a label
    "promotes": pa.list_(pa.int32()),  # next tokens, by the effect of doubling its strength at strong places
    "promotes_change": pa.list_(pa.float32()),  # change of their probability
    "contexts": pa.list_(pa.struct(_CONTEXT)),
}
SCHEMA = pa.schema(_COLUMNS)


def predictions_table(
    model: str, found: Sequence["ConceptPredictions"], windows: Sequence[int], ids: Sequence[Sequence[int]]
) -> pa.Table:
    """A table with a row per concept.

    Args:
        model: its name, <method>-<seed>.
        found: the predictions of each concept.
        windows: the indices of the windows that were read.
        ids: their tokens.
    """
    rows = [
        {
            "model": model,
            "concept": concept,
            "positions": sum(map(len, ids)),
            "predictions": each.predictions,
            "right": each.right,
            "labelled": each.labelled,
            "promotes": [effect.token for effect in each.promotes],
            "promotes_change": [effect.change for effect in each.promotes],
            "contexts": [
                {
                    "strength": place.strength,
                    "right": place.right,
                    "window": windows[place.window],
                    "position": place.position,
                    "start": (start := max(0, place.position - BEFORE)),
                    "tokens": ids[place.window][start : place.position + 1 + AFTER],
                }
                for place in each.places
            ],
        }
        for concept, each in enumerate(found)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)

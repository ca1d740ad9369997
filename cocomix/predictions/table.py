"""What the language models make of the concepts, as stage `steer` writes it; `reader.py` reads it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from cocomix.predictions.measure import ConceptPredictions

PREDICTED = "predicted.parquet"
BEFORE, AFTER = 16, 8
"""Tokens of a context, as far as its window reaches."""

_CONTEXT: dict[str, Any] = {
    "strength": pa.float32(),  # the concept's logit
    "right": pa.bool_(),  # whether it is a label there
    "window": pa.int64(),  # of the validation split
    "position": pa.int32(),  # in the window
    "start": pa.int32(),  # in the window, of the first token shown
    "tokens": pa.list_(pa.int32()),
}
_COLUMNS: dict[str, pa.DataType] = {
    "seed": pa.int64(),  # of the model
    "concept": pa.int32(),
    "positions": pa.int64(),  # that were read
    "predictions": pa.int64(),  # of them, those at which it is among the concept_k predicted
    "right": pa.int64(),  # of these, those of which it is a label
    "labelled": pa.int64(),  # positions of which it is a label
    "promotes": pa.list_(pa.int32()),  # tokens, by what doubling its strength does
    "promotes_change": pa.list_(pa.float32()),  # of their probability
    "contexts": pa.list_(pa.struct(_CONTEXT)),
}
SCHEMA = pa.schema(_COLUMNS)


def predictions_table(
    seed: int, found: Sequence["ConceptPredictions"], windows: Sequence[int], ids: Sequence[Sequence[int]]
) -> pa.Table:
    """A row a concept.

    Args:
        found: what was seen of each concept.
        windows: the numbers of the windows that were read.
        ids: their tokens.
    """
    rows = [
        {
            "seed": seed,
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

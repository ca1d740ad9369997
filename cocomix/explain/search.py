"""Search of the atlas for concepts by their labels and tokens."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Why = Literal["label", "fires on", "promotes"]


class Found(NamedTuple):
    """A search result."""

    concept: int
    label: str
    why: Why


class SearchIndex:
    """What a search compares, in arrays over all concepts.

    Args:
        table: the rows of concepts.parquet.
        texts: the text of each token.
    """

    def __init__(self, table: pa.Table, texts: Sequence[str]) -> None:
        self._labels: list[Any] = table["label"].to_pylist()
        self._lower = pa.array([each.lower() for each in self._labels])
        self._texts = pa.array([each.strip().lower() for each in texts])
        self._fires_on, self._promotes = Lists(table["fires_on"]), Lists(table["promotes"])
        self._shares = Lists(table["fires_on_share"]).values.astype(np.float64)

    def search(self, text: str, limit: int) -> list[Found]:
        """See `Atlas.search`."""
        wanted = text.strip().lower()
        if not wanted:
            return []
        is_wanted = pc.equal(self._texts, pa.scalar(wanted)).to_numpy(zero_copy_only=False)
        concepts, fires_on, promotes = len(self._labels), self._fires_on, self._promotes
        hits = is_wanted[fires_on.values].nonzero()[0]
        on = np.bincount(fires_on.concepts[hits], self._shares[hits], minlength=concepts)
        hits = is_wanted[promotes.values].nonzero()[0]
        promoted = np.zeros(concepts)
        np.maximum.at(promoted, promotes.concepts[hits], 0.5 / (1 + promotes.ranks[hits]))
        scores: dict[Why, NDArray[Any]] = {
            "label": pc.match_substring(self._lower, wanted).to_numpy(zero_copy_only=False).astype(np.float64),
            "fires on": on,
            "promotes": promoted,
        }
        total = sum(scores.values(), np.zeros(concepts))
        found = total.nonzero()[0]
        best = found[np.argsort(-total[found], kind="stable")][:limit].tolist()
        return [
            Found(concept, self._labels[concept], next(why for why in scores if scores[why][concept]))
            for concept in best
        ]


class Lists:
    """A column of lists of numbers, flattened."""

    def __init__(self, column: Any) -> None:
        lists = column.combine_chunks()
        self.values: NDArray[Any] = lists.flatten().to_numpy()
        self._lists = len(lists)
        lengths = pc.list_value_length(lists).to_numpy()
        self.concepts = np.repeat(np.arange(len(lengths)), lengths)
        """The row of each value: int64 [values]."""
        self.ranks = np.arange(len(self.values)) - np.repeat(lengths.cumsum() - lengths, lengths)
        """The place of each value in its list: int64 [values]."""

    def padded(self, padding: float) -> NDArray[Any]:
        """The lists as rows of one width: [lists, longest]."""
        rows = np.full((self._lists, self.ranks.max(initial=-1) + 1), padding, self.values.dtype)
        rows[self.concepts, self.ranks] = self.values
        return rows

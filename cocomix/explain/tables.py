"""Tables of the atlas, from the results of the scan."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.explain.atlas import CONCEPTS_SCHEMA, CONTEXTS_SCHEMA, STUDENT_VOCABULARY_SCHEMA, VOCABULARY_SCHEMA
from cocomix.explain.detection import Detection
from cocomix.explain.firings import Firings, ScanResult, best_of_each, rank_within
from cocomix.explain.lens import Best
from cocomix.explain.scan import ids_around
from cocomix.params import ExplainParams
from cocomix.tokens.windows import Tokens

GROUP = 64
"""Number of concepts per row group of contexts."""


class Chosen(NamedTuple):
    """The contexts of the atlas, by concept."""

    firings: Firings
    quantiles: Tensor
    """Quantile of the strength: float32 [n]; NaN: one of the strongest firings."""


class FiredOn(NamedTuple):
    """The tokens that each concept fires on most: [concepts, most], padded with -1 and NaN."""

    numbers: Tensor
    """int64."""
    shares: Tensor
    """Share of the concept's firings: float32."""
    lifts: Tensor
    """That share divided by the token's share of the text: float32."""


def chosen_contexts(seen: ScanResult, quantiles: int) -> Chosen:
    """The strongest firings of each concept, then firings at evenly spaced quantiles of strength, strong to weak.

    Quantiles are estimated from the pool, a sample of the firings; a concept with fewer firings has fewer.
    """
    pool = seen.pool.smallest(seen.pool.weakness(), len(seen.pool.concepts))
    sizes = pool.concepts.bincount(minlength=len(seen.counts))
    parts = (torch.arange(quantiles) + 0.5) / quantiles
    steps = (sizes[:, None] * parts).long()
    new = (steps < sizes[:, None]) & (torch.nn.functional.pad(steps, (1, 0), value=-1).diff(dim=1) > 0)
    rows = ((sizes.cumsum(0) - sizes)[:, None] + steps)[new]
    firings = (seen.strongest, pool.at(rows))
    both = Firings(*(torch.cat(each) for each in zip(*firings, strict=True)))
    values = torch.cat([torch.full((len(seen.strongest.concepts),), torch.nan), (1 - parts).expand_as(new)[new]])
    order = both.concepts.argsort(stable=True)
    return Chosen(both.at(order), values[order])


def contexts_tables(chosen: Chosen, tokens: Tokens, params: ExplainParams, concepts: int) -> Iterator[pa.Table]:
    """The rows of contexts.parquet, in groups of concepts."""
    firings = chosen.firings
    ids = ids_around(tokens, "train", firings.places, params.before, params.after).numpy()
    positions = (firings.places % tokens.context).numpy()
    columns = {
        "concept": firings.concepts.numpy(),
        "kind": np.where(chosen.quantiles.isnan().numpy(), "top", "quantile"),
        "quantile": chosen.quantiles.numpy(),
        "strength": firings.strengths.numpy(),
        "window": (firings.places // tokens.context).numpy(),
        "position": positions,
        "start": np.maximum(positions - params.before, 0),
        "tokens": ids,
        "strengths": firings.around.numpy(),
    }
    ends = np.searchsorted(columns["concept"], np.arange(GROUP, concepts + GROUP, GROUP))
    for start, end in zip([0, *ends], ends, strict=False):
        yield _table({name: column[start:end] for name, column in columns.items()}, CONTEXTS_SCHEMA)


def concepts_table(
    seen: ScanResult,
    fires_on: FiredOn,
    labels: Sequence[str],
    labellers: Sequence[str],
    scores: Detection,
    promoted: Best,
    nearest: Best,
) -> pa.Table:
    """The rows of concepts.parquet."""
    concepts = len(seen.counts)
    fired = seen.counts > 0
    peaks = torch.zeros(concepts)
    first = rank_within(seen.strongest.concepts) == 0
    peaks[seen.strongest.concepts[first]] = seen.strongest.strengths[first]
    columns = {
        "concept": np.arange(concepts),
        "label": labels,
        "labeller": labellers,
        "auc": scores.auc.numpy(),
        "balanced_accuracy": scores.balanced_accuracy.numpy(),
        "held_out": scores.firings.numpy(),
        "firings": seen.counts.numpy(),
        "rate": (seen.counts.double() / seen.tokens.sum()).numpy(),
        "mean_strength": (seen.sums / seen.counts.clamp(min=1)).where(fired, 0).numpy(),
        "max_strength": peaks.numpy(),
        "fires_on": fires_on.numbers.numpy(),
        "fires_on_share": fires_on.shares.numpy(),
        "fires_on_lift": fires_on.lifts.numpy(),
        "promotes": promoted.numbers.numpy(),
        "promotes_logit": promoted.values.numpy(),
        "nearest": nearest.numbers.numpy(),
        "nearest_cosine": nearest.values.numpy(),
    }
    return _table(columns, CONCEPTS_SCHEMA)


def vocabulary_table(texts: Sequence[str], seen: ScanResult) -> pa.Table:
    """The rows of vocabulary.parquet."""
    columns = {"token": np.arange(len(texts)), "text": texts, "count": seen.tokens.numpy()}
    return _table(columns, VOCABULARY_SCHEMA)


def student_vocabulary_table(texts: Sequence[str]) -> pa.Table:
    """The rows of student_vocabulary.parquet."""
    return _table({"token": np.arange(len(texts)), "text": texts}, STUDENT_VOCABULARY_SCHEMA)


def tokens_fired_on(sample: Firings, ids: Tensor, tokens: Tensor, concepts: int, most: int) -> FiredOn:
    """Count the tokens in a sample of firings.

    Args:
        ids: the token of each firing, [n].
        tokens: number of occurrences of each token in the text, [vocab].
    """
    pairs, counts = torch.unique(sample.concepts * len(tokens) + ids, return_counts=True)
    of, token = pairs // len(tokens), pairs % len(tokens)
    share = counts / sample.concepts.bincount(minlength=concepts)[of]
    lift = share / (tokens[token] / tokens.sum())
    rows, rank = best_of_each(of, counts, most)
    fired_on = FiredOn(torch.full((concepts, most), -1), *(torch.full((concepts, most), torch.nan) for _ in range(2)))
    for filled, values in zip(fired_on, (token, share, lift), strict=True):
        filled[of[rows], rank] = values[rows].to(filled.dtype)
    return fired_on


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table from arrays; list columns are [rows, most], where -1 or NaN is padding."""
    arrays = [
        _lists(columns[field.name], field.type)
        if pa.types.is_list(field.type)
        else pa.array(columns[field.name], field.type, from_pandas=True)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _lists(rows: NDArray[Any], kind: Any) -> Any:
    there = rows >= 0 if np.issubdtype(rows.dtype, np.integer) else ~np.isnan(rows)
    offsets = np.concatenate([[0], there.sum(1).cumsum()])
    items: Any = pa.array(rows[there], kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)

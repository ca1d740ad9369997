"""The atlas on disk, and its reader.

`concepts.parquet`: a row a concept, in order. `contexts.parquet`: a row a context, by concept; the statistics of its
row groups say which concepts they hold, so that one concept's contexts are read alone. `vocabulary.parquet`: a row a
token, its text and how often it occurs in what was read, so that a reader needs no tokenizer. All columns are numbers,
text, and lists of numbers, as DuckDB and pandas read them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError

CONCEPTS, CONTEXTS, VOCABULARY = "concepts.parquet", "contexts.parquet", "vocabulary.parquet"


def _schema(**columns: Any) -> pa.Schema:
    return pa.schema(columns)


CONCEPTS_SCHEMA = _schema(
    concept=pa.int32(),
    label=pa.string(),  # empty: it never fired
    labeller=pa.string(),  # tokens | model
    auc=pa.float32(),  # of the label on held-out text; null: it does not fire there
    balanced_accuracy=pa.float32(),
    held_out=pa.int32(),  # firings behind the two
    firings=pa.int64(),
    rate=pa.float64(),
    mean_strength=pa.float32(),  # where it fires
    max_strength=pa.float32(),
    fires_on=pa.list_(pa.int32()),  # tokens, by their share of a sample of the firings
    fires_on_share=pa.list_(pa.float32()),
    fires_on_lift=pa.list_(pa.float32()),  # the share over the token's share of the text
    promotes=pa.list_(pa.int32()),  # tokens, by the logit lens
    promotes_logit=pa.list_(pa.float32()),
    nearest=pa.list_(pa.int32()),  # concepts, by the cosine of their directions
    nearest_cosine=pa.list_(pa.float32()),
)
CONTEXTS_SCHEMA = _schema(
    concept=pa.int32(),
    kind=pa.string(),  # top | quantile
    quantile=pa.float32(),  # of the strength among the concept's firings; null for top
    strength=pa.float32(),
    window=pa.int64(),  # of the training split
    position=pa.int32(),  # in the window, of the firing
    start=pa.int32(),  # in the window, of the first token shown
    tokens=pa.list_(pa.int32()),
    strengths=pa.list_(pa.float32()),  # of the concept at each of the tokens
)
VOCABULARY_SCHEMA = _schema(token=pa.int32(), text=pa.string(), count=pa.int64())


class Shown(NamedTuple):
    """A token of a context."""

    token: int
    text: str
    strength: float
    """Of the concept there; 0: it does not fire."""


class Context(NamedTuple):
    """A stretch of training text in which a concept fires."""

    kind: Literal["top", "quantile"]
    """top: one of the strongest firings; quantile: one of those spread evenly over the strengths."""
    quantile: float | None
    """The share of the concept's firings that are weaker."""
    strength: float
    window: int
    position: int
    """Where it fires: a token of a window of the training split."""
    start: int
    """The position of the first token shown."""
    shown: list[Shown]


class FiresOn(NamedTuple):
    """A token that a concept fires on."""

    token: int
    text: str
    share: float
    """Of the concept's firings."""
    lift: float
    """How many times the token's share of the text that is."""


class Promoted(NamedTuple):
    """A token that a concept's direction makes more likely."""

    token: int
    text: str
    logit: float


class Near(NamedTuple):
    """A concept with a similar direction."""

    concept: int
    label: str
    cosine: float


class Card(NamedTuple):
    """What is known of a concept."""

    concept: int
    label: str
    """Empty: the concept never fired."""
    labeller: Literal["tokens", "model"]
    auc: float | None
    """Whether the label tells held-out firings from other places, 0.5 to 1; None: it does not fire there."""
    balanced_accuracy: float | None
    held_out: int
    """Held-out firings behind the two."""
    firings: int
    rate: float
    """Share of positions at which it fires."""
    mean_strength: float
    """Where it fires, in the autoencoder's scale."""
    max_strength: float
    fires_on: list[FiresOn]
    promotes: list[Promoted]
    nearest: list[Near]
    contexts: list[Context]


class Found(NamedTuple):
    """What a search found."""

    concept: int
    label: str
    why: Literal["label", "fires on", "promotes"]


class Atlas(Artifact):
    """Reads the atlas: `Atlas().concept(412)`, `Atlas().search("import")`.

    Opening it reads the table of concepts when it is first needed; contexts are read a concept at a time.
    """

    def __init__(self, path: Path = Path("artifacts/atlas")) -> None:
        super().__init__(path)

    def __len__(self) -> int:
        """How many concepts there are."""
        return int(self.about["concepts"])

    def label(self, concept: int) -> str:
        """The label of a concept.

        Raises:
            IndexError: for a number that is no concept's, as in the other methods.
        """
        return self._column("label")[self._checked(concept)]

    def concept(self, concept: int) -> Card:
        """All that is known of a concept."""
        row = self._table.slice(self._checked(concept), 1).to_pylist()[0]
        lists = ("fires_on", "promotes", "nearest")
        plain = {name: row[name] for name in Card._fields if name not in (*lists, "contexts")}
        return Card(
            **plain,
            fires_on=[
                FiresOn(token, self.texts[token], share, lift)
                for token, share, lift in zip(row["fires_on"], row["fires_on_share"], row["fires_on_lift"], strict=True)
            ],
            promotes=[
                Promoted(token, self.texts[token], logit)
                for token, logit in zip(row["promotes"], row["promotes_logit"], strict=True)
            ],
            nearest=[
                Near(near, self.label(near), cosine)
                for near, cosine in zip(row["nearest"], row["nearest_cosine"], strict=True)
            ],
            contexts=list(self.contexts(concept)),
        )

    def contexts(self, concept: int) -> Iterator[Context]:
        """The contexts of a concept: the strongest first, then those over the quantiles, from strong to weak."""
        file, ends = self._contexts
        group = bisect_left(ends, self._checked(concept))
        if group == len(ends):
            return
        rows = file.read_row_group(group)
        for row in rows.filter(pc.field("concept") == concept).drop_columns("concept").to_pylist():
            pairs = zip(row.pop("tokens"), row.pop("strengths"), strict=True)
            yield Context(**row, shown=[Shown(token, self.texts[token], strength) for token, strength in pairs])

    def search(self, text: str, limit: int = 20) -> list[Found]:
        """Concepts whose label holds `text`, or that fire on it or promote it as a token, best first.

        Upper and lower case, and space around a token, make no difference.
        """
        wanted = text.strip().lower()
        tokens = {token for token, each in enumerate(self.texts) if each.strip().lower() == wanted}
        if not wanted:
            return []
        found: list[tuple[float, Found]] = []
        columns = map(self._column, ("label", "fires_on", "fires_on_share", "promotes"))
        for concept, (label, on, shares, promoted) in enumerate(zip(*columns, strict=True)):
            scores: dict[Literal["label", "fires on", "promotes"], float] = {
                "label": float(wanted in label.lower()),
                "fires on": sum(share for token, share in zip(on, shares, strict=True) if token in tokens),
                "promotes": max(
                    (0.5 / (1 + place) for place, token in enumerate(promoted) if token in tokens), default=0
                ),
            }
            if any(scores.values()):
                found.append((sum(scores.values()), Found(concept, label, next(why for why in scores if scores[why]))))
        found.sort(key=lambda each: -each[0])
        return [each for _, each in found[:limit]]

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token."""
        texts: list[Any] = pq.read_table(self.file(VOCABULARY), columns=["text"])["text"].to_pylist()
        return texts

    @cached_property
    def _table(self) -> pa.Table:
        table = pq.read_table(self.file(CONCEPTS))
        if len(table) != len(self):
            raise UserError(f"{self.path}: has {len(table)} of its {len(self)} concepts; {self._remedy}")
        return table

    @cached_property
    def _contexts(self) -> tuple[pq.ParquetFile, list[int]]:
        """The open file, and the last concept in each of its row groups."""
        file = pq.ParquetFile(self.file(CONTEXTS))
        numbers: Any = (file.metadata.row_group(each).column(0).statistics for each in range(file.num_row_groups))
        return file, [each.max for each in numbers]

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        return {}

    def _column(self, name: str) -> list[Any]:
        if name not in self._columns:
            self._columns[name] = self._table[name].to_pylist()
        return self._columns[name]

    def _checked(self, concept: int) -> int:
        if not 0 <= concept < len(self):
            raise IndexError(f"concept {concept}: there are {len(self)}, from 0")
        return concept


def write_table(path: Path, parts: Sequence[pa.Table] | Iterator[pa.Table], schema: pa.Schema) -> int:
    """Write a Parquet file, a row group for each part; the rows written."""
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            if len(part):
                writer.write_table(part, row_group_size=len(part))
                rows += len(part)
    return rows

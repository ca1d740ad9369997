"""The atlas on disk, and its reader.

`concepts.parquet`: one row per concept, in order. `contexts.parquet`: one row per context, sorted by concept; the
statistics of its row groups tell which concepts they hold, so one concept's contexts can be read alone.
`vocabulary.parquet`: one row per token, with its text and its count in the scanned text, so that a reader needs no
tokenizer. All columns are numbers, text, or lists of numbers, which DuckDB and pandas read.

All tokens are the base model's. Where it has its own tokenizer, `student_vocabulary.parquet` has the texts of the
students' tokens, for readers of what students predict.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cocomix.explain.search import Found, SearchIndex
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError

CONCEPTS, CONTEXTS, VOCABULARY = "concepts.parquet", "contexts.parquet", "vocabulary.parquet"


def _schema(**columns: Any) -> pa.Schema:
    return pa.schema(columns)


CONCEPTS_SCHEMA = _schema(
    concept=pa.int32(),
    label=pa.string(),  # empty: the concept never fired, or nothing tells where
    labeller=pa.string(),  # tokens | model
    auc=pa.float32(),  # of the label on held-out text; null: the concept does not fire there
    balanced_accuracy=pa.float32(),
    held_out=pa.int32(),  # number of firings that both scores are computed from
    firings=pa.int64(),
    rate=pa.float64(),
    mean_strength=pa.float32(),  # over its firings
    max_strength=pa.float32(),
    fires_on=pa.list_(pa.int32()),  # tokens, by share in a sample of the firings
    fires_on_share=pa.list_(pa.float32()),
    fires_on_lift=pa.list_(pa.float32()),  # that share divided by the token's share of the text
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
    window=pa.int64(),  # index in the training split
    position=pa.int32(),  # of the firing in the window
    start=pa.int32(),  # position of the first token shown
    tokens=pa.list_(pa.int32()),
    strengths=pa.list_(pa.float32()),  # of the concept at each of the tokens
)
VOCABULARY_SCHEMA = _schema(token=pa.int32(), text=pa.string(), count=pa.int64())
STUDENT_VOCABULARY = "student_vocabulary.parquet"
STUDENT_VOCABULARY_SCHEMA = _schema(token=pa.int32(), text=pa.string())


class Shown(NamedTuple):
    """A token of a context."""

    token: int
    text: str
    strength: float
    """Strength of the concept at the token; 0: it does not fire."""


class Context(NamedTuple):
    """An excerpt of training text in which a concept fires."""

    kind: Literal["top", "quantile"]
    """top: one of the strongest firings; quantile: a firing at an evenly spaced quantile of the strength."""
    quantile: float | None
    """Share of the concept's firings that are weaker."""
    strength: float
    window: int
    position: int
    """Where it fires: position in the window, whose index is that in the training split."""
    start: int
    """Position of the first token shown."""
    shown: list[Shown]


class FiresOn(NamedTuple):
    """A token that a concept fires on."""

    token: int
    text: str
    share: float
    """Share of the concept's firings."""
    lift: float
    """That share divided by the token's share of the text."""


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
    """The atlas entry of a concept."""

    concept: int
    label: str
    """Empty: the concept never fired, or no token is more frequent where it fires than elsewhere."""
    labeller: Literal["tokens", "model"]
    auc: float | None
    """How well the label separates held-out firings from other positions; 0.5: chance, None: no held-out firings."""
    balanced_accuracy: float | None
    held_out: int
    """Number of held-out firings that both scores are computed from."""
    firings: int
    rate: float
    """Share of positions at which it fires."""
    mean_strength: float
    """Mean over its firings, in the autoencoder's scale."""
    max_strength: float
    fires_on: list[FiresOn]
    promotes: list[Promoted]
    nearest: list[Near]
    contexts: list[Context]
    """The strongest first, then the quantiles from strong to weak."""


class Atlas(Artifact):
    """Reads the atlas: `Atlas().concept(412)`, `Atlas().search("import")`.

    The concepts table is read when it is first needed; contexts are read for one concept at a time.
    """

    def __init__(self, path: Path = Path("artifacts/atlas")) -> None:
        super().__init__(path)

    def __len__(self) -> int:
        """Number of concepts."""
        return int(self.about["concepts"])

    def label(self, concept: int) -> str:
        """The label of a concept.

        Raises:
            IndexError: when there is no such concept; so do the other methods.
        """
        return self._column("label")[self._checked(concept)]

    def scores(self) -> Iterator[tuple[int, float | None, int]]:
        """Number of each concept, the AUC of its label, and the held-out firings that it rests on."""
        return zip(range(len(self)), *map(self._column, ("auc", "held_out")), strict=True)

    def concept(self, concept: int) -> Card:
        """The entry of a concept."""
        (row,) = self.stored_rows(self._checked(concept), concept + 1)
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
            contexts=list(map(self._context, row["contexts"])),
        )

    def stored_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """The rows of concepts.parquet from `start` to before `stop`, each with its `contexts`, as rows too."""
        rows: list[dict[str, Any]] = self._table.slice(start, stop - start).to_pylist()
        for row in rows:
            row["contexts"] = []
        for context in self._context_rows(start, stop):
            rows[context["concept"] - start]["contexts"].append(context)
        return rows

    def columns(self, *names: str) -> pa.Table:
        """Columns of concepts.parquet."""
        return self._table.select(names)

    def search(self, text: str, limit: int = 20) -> list[Found]:
        """Concepts whose label contains `text`, or that fire on it or promote it as a token, best first.

        Case and the space around a token are ignored.
        """
        return self._search_index.search(text, limit)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token of the base model, by id."""
        return self._texts(VOCABULARY)

    @cached_property
    def student_texts(self) -> list[str]:
        """The text of each token of the students, by id."""
        return self._texts(STUDENT_VOCABULARY) if STUDENT_VOCABULARY in self.manifest.files else self.texts

    def _context_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        file, ends = self._contexts
        groups = range(len(ends))[bisect_left(ends, start) : bisect_left(ends, stop - 1) + 1]
        concept = pc.field("concept")
        rows: list[dict[str, Any]] = (
            file.read_row_groups(list(groups)).filter((concept >= start) & (concept < stop)).to_pylist()
        )
        return rows

    def _context(self, row: dict[str, Any]) -> Context:
        shown = [
            Shown(token, self.texts[token], strength)
            for token, strength in zip(row["tokens"], row["strengths"], strict=True)
        ]
        return Context(**{name: row[name] for name in Context._fields if name != "shown"}, shown=shown)

    def _texts(self, name: str) -> list[str]:
        # ParquetFile here and below, since read_table imports pandas.
        texts: list[Any] = pq.ParquetFile(self.file(name)).read(columns=["text"])["text"].to_pylist()
        return texts

    @cached_property
    def _table(self) -> pa.Table:
        table = pq.ParquetFile(self.file(CONCEPTS)).read()
        if len(table) != len(self):
            raise UserError(f"{self.path}: has {len(table)} of its {len(self)} concepts; {self._remedy}")
        return table

    @cached_property
    def _contexts(self) -> tuple[pq.ParquetFile, list[int]]:
        """The open file, and the last concept of each of its row groups."""
        file = pq.ParquetFile(self.file(CONTEXTS))
        numbers: Any = (file.metadata.row_group(each).column(0).statistics for each in range(file.num_row_groups))
        return file, [each.max for each in numbers]

    @cached_property
    def _search_index(self) -> SearchIndex:
        return SearchIndex(self._table, self.texts)

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


def write_table(work: Work, name: str, parts: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write a Parquet file of the atlas, with a row group for each part."""
    with work.write(name) as pending:
        pending.rows = 0
        with pq.ParquetWriter(pending.path, schema, compression="zstd") as writer:
            for part in parts:
                if len(part):
                    writer.write_table(part, row_group_size=len(part))
                    pending.rows += len(part)

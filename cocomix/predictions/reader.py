"""Reader of the language models' predictions of concepts, with token texts from the atlas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cocomix.explain.atlas import Atlas, Shown
from cocomix.plumbing.artifact import MANIFEST, Artifact
from cocomix.plumbing.errors import UserError
from cocomix.predictions.table import PREDICTED


class PredictedContext(NamedTuple):
    """An excerpt of validation text in which a concept is predicted."""

    strength: float
    right: bool
    """Whether the concept is a label there."""
    window: int
    position: int
    start: int
    """Position of the first token shown."""
    shown: list[Shown]
    """Tokens with the strength at `position`, and 0 elsewhere."""


class PromotedToken(NamedTuple):
    """A token that a predicted concept makes more likely."""

    token: int
    text: str
    change: float
    """Change of its probability as the next token when the concept's strength is doubled where it is predicted."""


class Predictions(NamedTuple):
    """A language model's predictions of one concept."""

    positions: int
    """Number of positions that were read."""
    predictions: int
    """Number of positions at which it is among the predicted concepts."""
    right: int
    labelled: int
    promotes: list[PromotedToken]
    contexts: list[PredictedContext]
    """The strongest predictions, at most one per window."""


class PredictionsReader:
    """Reads a language model's predictions of each concept; `open_predictions` opens it."""

    def __init__(self, table: pa.Table, texts: Sequence[str]) -> None:
        self._table, self._texts = table, texts

    def concept(self, concept: int) -> Predictions:
        """The predictions of one concept."""
        row: dict[str, Any] = self._table.slice(concept, 1).to_pylist()[0]
        effects = zip(row["promotes"], row["promotes_change"], strict=True)
        return Predictions(
            **{name: row[name] for name in ("positions", "predictions", "right", "labelled")},
            promotes=[PromotedToken(token, self._texts[token], change) for token, change in effects],
            contexts=[self._context(each) for each in row["contexts"]],
        )

    def _context(self, row: dict[str, Any]) -> PredictedContext:
        tokens = enumerate(row.pop("tokens"), row["start"])
        at, strength = row["position"], row["strength"]
        shown = [Shown(each, self._texts[each], strength if place == at else 0.0) for place, each in tokens]
        return PredictedContext(**row, shown=shown)


def open_predictions(steering: Path, atlas: Atlas, model: Path | None = None) -> PredictionsReader | None:
    """Open a language model's predictions of the concepts of `atlas`; None: there are none for this model and atlas.

    Args:
        steering: the artifact of the stage `steer`.
        model: the model's artifact; None: the first one that was measured.

    Raises:
        UserError: when concepts are missing.
    """
    if not (steering / MANIFEST).is_file() or (model and not (model / MANIFEST).is_file()):
        return None
    made = Artifact(steering)
    digests = {name: made.manifest.inputs[f"models/{name}"] for name in made.about["models"]}
    names = [name for name, digest in digests.items() if model is None or digest == Artifact(model).digest]
    dictionaries = {each.manifest.inputs.get("sae") for each in (made, atlas)}
    if not names or len(dictionaries) > 1 or PREDICTED not in made.manifest.files:
        return None
    table = pq.read_table(made.file(PREDICTED), filters=pc.field("model") == names[0])
    if len(table) != len(atlas):
        raise UserError(
            f"{steering}: has {len(table)} concepts, {atlas.path} {len(atlas)}; run the stage 'steer' again"
        )
    return PredictionsReader(table, atlas.student_texts)

"""The models behind the page, which serve one request at a time."""

from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList, TextStreamer

from cocomix.explain.atlas import Atlas, Card
from cocomix.explain.search import Found
from cocomix.explore.calls import Continuation, python_call, shell_call
from cocomix.explore.continuation import continuation, default_tokens
from cocomix.explore.edit_syntax import Written, parse_edit
from cocomix.explore.load import load_extractor, load_labels, load_model
from cocomix.plumbing.artifact import MANIFEST
from cocomix.plumbing.errors import UserError
from cocomix.predictions.reader import Predictions, open_predictions
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.steering.autoencoder import editing
from cocomix.steering.reading import Position, concepts, encode

LISTED = 200
"""Maximum results of a search."""


class About(NamedTuple):
    """Facts that the page shows."""

    model: str
    """The model's folder."""
    concepts: int
    context: int
    """Maximum tokens that the model can read."""
    new_tokens: int
    """New tokens of a continuation, until another number is asked for."""
    mixes: bool
    """Whether the model mixes the concepts that it predicts: otherwise edits do not change its text."""
    labels: bool
    """Whether the base model and the autoencoder exist; they label a text, and can be edited too."""
    atlas: bool
    """Whether there is an atlas with the meanings of concepts."""


class Calls(NamedTuple):
    """Equivalent calls of a request."""

    python: str
    shell: str


class Session:
    """A model with the other artifacts of its pipeline, as far as they exist.

    Raises:
        UserError: when the model is missing, or an artifact is from another pipeline.
    """

    def __init__(self, folder: Path, artifacts: Path) -> None:
        self._folder, self._artifacts = folder, artifacts
        self._model, self._tokenizer = load_model(folder)
        labelled = (artifacts / "concepts" / MANIFEST).is_file()
        self._extractor = load_extractor(artifacts, self._model) if labelled else None
        self._labels = load_labels(artifacts, self._model)
        self._atlas = Atlas(artifacts / "atlas") if (artifacts / "atlas" / MANIFEST).is_file() else None
        self._predictions = open_predictions(artifacts / "steering", self._atlas, folder) if self._atlas else None
        self._busy = Lock()  # torch's random state is global, and reading puts hooks on the model
        self._looking = Lock()  # an open Parquet file is not thread-safe
        self._closing = Event()

    @property
    def about(self) -> About:
        """Facts that the page shows."""
        config = self._model.config
        return About(
            model=str(self._folder),
            concepts=config.num_concepts,
            context=config.max_position_embeddings,
            new_tokens=default_tokens(config.max_position_embeddings),
            mixes=config.mixing != "none",
            labels=self._extractor is not None,
            atlas=self._atlas is not None,
        )

    def read(self, text: str) -> list[Position]:
        """The concepts at each token of a text.

        Raises:
            UserError: when the text is empty or too long.
        """
        with self._busy:
            return concepts(self._model, text, self._tokenizer, self._extractor, self._labels)

    def strengths(self, text: str, concept: int) -> list[float]:
        """The logit of a concept at each token of a text, whether the concept is mixed there or not.

        Raises:
            UserError: when the text is empty or too long, or there is no such concept.
        """
        known = self._model.config.num_concepts
        if not 0 <= concept < known:
            raise UserError(f"concept {concept}: there are {known}, from 0 to {known - 1}")
        with self._busy, torch.no_grad():
            found = self._model.concepts(encode(self._model, text, self._tokenizer))
        strengths: list[float] = found.logits[0, :, concept].tolist()
        return strengths

    def search(self, text: str) -> list[Found]:
        """The concept with this number, then up to `LISTED` concepts whose label or tokens match."""
        wanted, known = text.strip(), range(self._model.config.num_concepts)
        number = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 else -1
        found = [Found(number, self._labels.get(number, ""), "label")] if number in known else []
        if self._atlas is not None:
            with self._looking:
                found += [each for each in self._atlas.search(text, LISTED) if each.concept != number]
        return found

    def concept(self, number: int) -> Card:
        """The atlas entry of a concept.

        Raises:
            UserError: when there is no such concept, or no atlas.
        """
        if self._atlas is None:
            raise UserError("there is no atlas; `dvc repro explain` finds out what concepts are about")
        try:
            with self._looking:
                return self._atlas.concept(number)
        except IndexError as error:
            raise UserError(str(error)) from None

    def predictions(self, number: int) -> Predictions | None:
        """The model's predictions of an existing concept; None: the stage `steer` has not measured this model."""
        return self._predictions.concept(number) if self._predictions else None

    def calls(self, asked: Continuation) -> Calls:
        """Equivalent calls of the request in Python and in a shell.

        Raises:
            UserError: for an invalid edit.
        """
        where = self._folder, self._artifacts, asked
        own = self._extractor is not None and self._extractor.tokenizer is not None
        return Calls(python_call(*where, self._edits(asked), own_tokenizer=own), shell_call(*where))

    def write(self, asked: Continuation, *, say: Callable[[str], None], stop: Event) -> None:
        """Continue a text, pass each piece to `say`, and end early when `stop` is set or `close` is called.

        Raises:
            UserError: for an invalid edit, or a text that is empty or too long.
        """
        edits, (writer, sae, tokenizer) = self._edits(asked), self._writer(asked)
        ids = encode(writer, asked.text, tokenizer, asked.tokens)
        with self._busy:
            if stop.is_set() or self._closing.is_set():
                return
            with editing(writer, sae, edits) as edited:
                continuation(
                    writer,
                    tokenizer,
                    ids,
                    asked.sampling,
                    streamer=_Pieces(tokenizer, say),
                    stopping_criteria=StoppingCriteriaList([_WhenSet(stop), _WhenSet(self._closing)]),
                    **edited,
                )

    def close(self) -> None:
        """End the running continuation and refuse further ones."""
        self._closing.set()

    def _writer(self, asked: Continuation) -> tuple[PreTrainedModel, SparseAutoencoder | None, PreTrainedTokenizerFast]:
        if not asked.base:
            return self._model, None, self._tokenizer
        if self._extractor is None:
            raise UserError("there is no base model here; it comes with the labels: `dvc repro attribution`")
        return self._extractor.base, self._extractor.sae, self._extractor.tokenizer or self._tokenizer

    def _edits(self, asked: Continuation) -> list[Written]:
        if asked.before_selection and asked.base:
            raise UserError("before selection: the base model's edits are of active latents")
        known = self._model.config.num_concepts
        return [parse_edit(each, known, before_selection=asked.before_selection) for each in asked.edits]


class _Pieces(TextStreamer):
    """Passes each piece of a continuation to `say`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        if text:
            self._say(text)


class _WhenSet(StoppingCriteria):
    """Ends a generation when another thread sets an event."""

    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)

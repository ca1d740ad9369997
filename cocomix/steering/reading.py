"""Read a text's concepts: those that a CoCoMix model predicts, the labels, and the information gain of mixing."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.attribution.labelling import label_windows
from cocomix.base.loading import longest_context, micro_batch
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.models.replacement import vectors_replaced
from cocomix.params import AttributionParams
from cocomix.plumbing.errors import UserError
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.tokens.alignment import aligned
from cocomix.tokens.encoding import ids_and_spans_of, ids_of_text, plain


class Extractor(NamedTuple):
    """The models and parameters that define and label concepts."""

    base: PreTrainedModel
    sae: SparseAutoencoder
    params: AttributionParams
    """Parameters of the labels."""
    tokenizer: PreTrainedTokenizerFast | None = None
    """The base model's own; None: the students'."""


class Concept(NamedTuple):
    """A concept at a position."""

    concept: int
    strength: float
    """The logit of a predicted concept; the attribution score of a label."""
    label: str | None
    """Its meaning in the atlas, if known."""


class Position(NamedTuple):
    """A token with its concepts."""

    token: int
    text: str
    predicted: list[Concept]
    """The `concept_k` concepts that are mixed (or would be), strongest first."""
    labelled: list[Concept] | None
    """Labels by attribution, best first; None without an extractor."""
    gain: float | None
    """Gain from mixing at this position for the next token's loss (`information_gain`), in nats; None at the last
    position, and if the model mixes nothing."""


@torch.no_grad()
def concepts(
    model: CoCoMixLanguageModel,
    text: str | list[int],
    tokenizer: PreTrainedTokenizerFast,
    extractor: Extractor | None = None,
    labels: Mapping[int, str] | None = None,
) -> list[Position]:
    """The concepts at each position of a text.

    Args:
        text: a text, or its token ids; a text for labels of a base model with its own tokenizer.
        extractor: the base model and the autoencoder of the pipeline that made `model`; also labels the text.
        labels: the meanings of concepts, by concept.

    Raises:
        UserError: when the model predicts no concepts, or the text is empty or longer than a model can read.
    """
    ids = encode(model, text, tokenizer)[0]
    if model.config.predicts != "concepts":
        raise UserError(f"this model predicts no concepts (predicts: {model.config.predicts})")
    found = model.concepts(ids[None])
    mixed = [each[0].tolist() for each in (found.indices, found.strengths)]
    labelled = None
    if extractor and extractor.tokenizer is None:
        labelled = _labelled(extractor, ids)
    elif extractor:
        labelled = _labelled_in_own_tokens(extractor, text, tokenizer)
    gains = information_gain(model, ids).tolist() if model.config.mixing != "none" else [None] * (len(ids) - 1)
    names = labels or {}

    def named(numbers: list[int], strengths: list[float]) -> list[Concept]:
        return [Concept(n, s, names.get(n)) for n, s in zip(numbers, strengths, strict=True)]

    return [
        Position(
            token=token,
            text=tokenizer.decode([token]),
            predicted=named(mixed[0][t], mixed[1][t]),
            labelled=named(*labelled[t]) if labelled is not None else None,
            gain=gain,
        )
        for t, (token, gain) in enumerate(zip(ids.tolist(), [*gains, None], strict=True))
    ]


def encode(
    model: PreTrainedModel, text: str | list[int], tokenizer: PreTrainedTokenizerFast, new_tokens: int = 0
) -> Tensor:
    """Token ids of a text, on the model's device: int64 [1, seq].

    Args:
        text: a text, encoded as the corpus was (`ids_of_text`), or its token ids.

    Raises:
        UserError: when it is empty, not Unicode, or longer than the model can read with `new_tokens` more.
    """
    try:
        ids = ids_of_text(tokenizer, unicode_text(text)) if isinstance(text, str) else text
    except ValueError as error:
        raise UserError(f"the text is {error}") from None
    limit = longest_context(model.config)
    if not ids:
        raise UserError("the text is empty; give at least one token")
    if limit and len(ids) + new_tokens > limit:
        more = f" and {new_tokens} new ones" if new_tokens else ""
        raise UserError(f"the text has {len(ids)} tokens{more}; the model reads at most {limit}")
    return torch.tensor([ids], device=model.device)


def unicode_text(text: str) -> str:
    """Validate that a text is Unicode and return it.

    Raises:
        ValueError: when it contains a lone surrogate, from JSON or from a command line that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not Unicode at character {error.start}: a lone surrogate") from None
    return text


@torch.no_grad()
def information_gain(model: CoCoMixLanguageModel, ids: Tensor) -> Tensor:
    """Gain from the mixed vector at each position for the next token's loss; the other positions mix as usual.

    It is the next token's loss with zeros for that vector minus the unchanged loss, in nats: [seq - 1].

    Args:
        ids: int64 [seq], at least 1.
    """
    every = torch.arange(len(ids) - 1, device=ids.device)
    hidden = model.base_model(ids[None], use_cache=False).last_hidden_state[0, :-1]
    as_it_is = _losses(model, hidden, ids[1:])
    without = torch.empty_like(as_it_is)
    for start in range(0, len(every), size := micro_batch(len(ids))):
        places = every[start : start + size]
        with vectors_replaced(model, partial(_zeroed, places=places)):
            hidden = model.base_model(ids.expand(len(places), -1), use_cache=False).last_hidden_state
        without[places] = _losses(model, hidden[every[: len(places)], places], ids[places + 1])
    return without - as_it_is


def _losses(model: CoCoMixLanguageModel, hidden: Tensor, following: Tensor) -> Tensor:
    """The loss of each next token, [n], from hidden states [n, d_model]."""
    return nn.functional.cross_entropy(model.lm_head(hidden).float(), following, reduction="none")


def _zeroed(vectors: Tensor, places: Tensor) -> Tensor:
    """`vectors` [batch, seq, d_model] with zeros at one position of each row; places: int64 [batch]."""
    vectors = vectors.clone()
    vectors[torch.arange(len(places)), places] = 0
    return vectors


def _labelled(extractor: Extractor, ids: Tensor) -> list[tuple[list[int], list[float]]]:
    """The labels of each position and their scores."""
    base, sae, params, _ = extractor
    limit = longest_context(base.config)
    if limit and len(ids) > limit:
        raise UserError(f"the text has {len(ids)} tokens; the base model reads at most {limit}")
    found = label_windows(base, sae, ids[None], params)
    none = np.iinfo(found.concepts.dtype).max
    return [
        ([int(n) for n in numbers if n != none], [float(s) for n, s in zip(numbers, scores, strict=True) if n != none])
        for numbers, scores in zip(found.concepts[0], found.scores[0], strict=True)
    ]


def _labelled_in_own_tokens(
    extractor: Extractor, text: str | list[int], tokenizer: PreTrainedTokenizerFast
) -> list[tuple[list[int], list[float]]]:
    """The same for the model's tokens, of a base model that reads the text in its own."""
    if not isinstance(text, str) or extractor.tokenizer is None:
        raise UserError("labels of a base model with its own tokenizer need a text, not token ids")
    both = (tokenizer, extractor.tokenizer)
    (_, student), (ids, base) = (ids_and_spans_of(plain(each.backend_tokenizer), text, "the text") for each in both)
    labelled = _labelled(extractor, torch.tensor(ids, dtype=torch.int64, device=extractor.base.device))
    return [labelled[place] if place >= 0 else ([], []) for place in aligned(text, student, base).tolist()]

"""Measure a language model's predictions of concepts: where, how accurate, and with what effect on the next token."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from cocomix.base.loading import micro_batch
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.modeling.concept_edits import Scale
from cocomix.plumbing import distributed
from cocomix.plumbing.parts import Advance, in_parts

DOUBLED = 2
"""Number of a concept's strongest windows in which its strength is doubled."""


class Place(NamedTuple):
    """A position at which a concept is predicted."""

    window: int
    position: int
    strength: float
    """The concept's logit."""
    right: bool
    """Whether the concept is a label there."""


class Promoted(NamedTuple):
    """A token that a predicted concept makes more likely."""

    token: int
    change: float
    """Mean change of the token's probability."""


class ConceptPredictions(NamedTuple):
    """A language model's predictions of one concept in some text."""

    predictions: int
    """Number of positions at which it is among the predicted concepts."""
    right: int
    """Number of these positions at which it is a label."""
    labelled: int
    """Number of positions at which it is a label."""
    places: list[Place]
    """The strongest predictions, at most one per window."""
    promotes: list[Promoted]
    """Tokens by the change of the next-token distribution when the concept's strength is doubled where predicted."""


class _Reading(NamedTuple):
    """Results of one pass over the text."""

    predictions: Tensor
    """int64 [concepts], like the next two."""
    right: Tensor
    labelled: Tensor
    strengths: Tensor
    """[places, concepts], descending; -inf is padding."""
    places: Tensor
    """Their positions in the flattened text: int64 [places, concepts]."""
    chosen: Tensor
    """The predicted concepts, int64 [windows, seq, concept_k]."""
    hidden: Tensor
    """Input of the language model head: [windows, seq, d_model]."""


@torch.no_grad()
def measure_predictions(
    model: CoCoMixLanguageModel,
    ids: Tensor,
    labels: Tensor,
    promoted: int,
    kept: Path,
    places: int = 6,
    task: str = "predicted",
) -> list[ConceptPredictions]:
    """Measure the predictions of each concept by a language model that mixes concepts, on some windows.

    The processes share the concepts, and each returns all results. The strength of a concept is doubled at all
    positions of its strongest windows at once, like in steering.

    Args:
        ids: int64 [windows, seq].
        labels: the concepts of each position, int64 [windows, seq, k_attr]; a number outside the dictionary: no label.
        promoted: maximum promoted tokens per concept.
        kept: path prefix of the files with partial results, for exactly this measurement.
        places: maximum places per concept.
        task: description for the progress bar.

    Returns:
        One item per concept, in order.
    """
    ids, labels = ids.to(model.device), labels.to(model.device)
    seen = _read(model, ids, labels, places)
    effects = _doubled(model, ids, seen, promoted, kept, task)
    concepts = torch.arange(model.config.num_concepts, device=ids.device)
    right = (labels.flatten(0, 1)[seen.places] == concepts[:, None]).any(2)
    found: list[list[Place]] = [[] for _ in concepts]
    by_place = (each.tolist() for each in (seen.places, seen.strengths, right))
    for rank in zip(*by_place, strict=True):
        for concept, (place, strength, is_label) in enumerate(zip(*rank, strict=True)):
            if strength > -torch.inf:
                window, position = divmod(place, ids.shape[1])
                found[concept].append(Place(window, position, strength, is_label))
    counts = zip(seen.predictions.tolist(), seen.right.tolist(), seen.labelled.tolist(), found, strict=True)
    return [ConceptPredictions(*each, effects.get(concept, [])) for concept, each in enumerate(counts)]


def _read(model: CoCoMixLanguageModel, ids: Tensor, labels: Tensor, places: int) -> _Reading:
    concepts, seq = model.config.num_concepts, ids.shape[1]
    predictions, right = ids.new_zeros(2, concepts)
    strengths, at = torch.full((places, concepts), -torch.inf, device=ids.device), ids.new_zeros(places, concepts)
    chosen, hidden = [], []
    for rows in torch.split(torch.arange(len(ids), device=ids.device), micro_batch(seq)):
        body = model.base_model(ids[rows], use_cache=False)
        top = body.concept_logits.float().topk(model.config.concept_k)
        predictions += top.indices.flatten().bincount(minlength=concepts)
        is_label = (top.indices[..., None] == labels[rows, :, None]).any(3)
        right += top.indices[is_label].bincount(minlength=concepts)
        found = torch.full_like(body.concept_logits, -torch.inf, dtype=torch.float32)
        peaks = found.scatter_(2, *reversed(top)).max(1)
        strengths, order = torch.cat([strengths, peaks.values]).sort(dim=0, descending=True, stable=True)
        at = torch.cat([at, rows[:, None] * seq + peaks.indices]).gather(0, order)
        strengths, at = strengths[:places], at[:places]
        chosen.append(top.indices)
        hidden.append(body.last_hidden_state)
    labelled = labels[(labels >= 0) & (labels < concepts)].bincount(minlength=concepts)
    return _Reading(predictions, right, labelled, strengths, at, torch.cat(chosen), torch.cat(hidden))


def _doubled(
    model: CoCoMixLanguageModel, ids: Tensor, seen: _Reading, promoted: int, kept: Path, task: str
) -> dict[int, list[Promoted]]:
    """Effects of doubling, for each concept that was predicted."""
    windows, there = seen.places[:DOUBLED] // ids.shape[1], seen.strengths[:DOUBLED] > -torch.inf
    # Rank 0's concepts: another process's arithmetic may round differently and predict others.
    all_concepts = torch.tensor(distributed.from_first(seen.predictions.nonzero()[:, 0].tolist()), device=ids.device)

    @torch.no_grad()
    def doubled(concepts: Tensor, _advance: Advance) -> bytes:
        number, place = there[:, concepts].T.nonzero(as_tuple=True)
        of, rows = concepts[number], windows[place, concepts[number]]
        edits = [[Scale(each, 2.0)] for each in of.tolist()]
        here = (seen.chosen[rows] == of[:, None, None]).any(2)
        hidden = model.base_model(ids[rows], use_cache=False, concept_edits=edits).last_hidden_state
        change = _shares(model, hidden[here]) - _shares(model, seen.hidden[rows][here])
        weights = F.one_hot(number[here.nonzero()[:, 0]], len(concepts)).float()
        largest = ((weights / weights.sum(0)).T @ change).topk(min(promoted, change.shape[1]))
        return save({"tokens": largest.indices.cpu(), "changes": largest.values.cpu()})

    size = max(1, micro_batch(ids.shape[1]) // DOUBLED)
    parts = {
        kept.with_name(f"{kept.name}-{number}-{size}.safetensors"): concepts
        for number, concepts in enumerate(torch.split(all_concepts, size))
    }
    in_parts(parts, doubled, len, task, "concepts")
    effects = {}
    for path, concepts in parts.items():
        found = load(path.read_bytes())
        for concept, *some in zip(concepts.tolist(), found["tokens"].tolist(), found["changes"].tolist(), strict=True):
            effects[concept] = [Promoted(*each) for each in zip(*some, strict=True) if each[1] > 0]
    return effects


def _shares(model: CoCoMixLanguageModel, hidden: Tensor) -> Tensor:
    """The next-token distribution, float32 [n, vocab]."""
    return model.lm_head(hidden).softmax(1, torch.float32)  # type: ignore[no-any-return]

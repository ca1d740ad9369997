"""Measure a language model's predictions of concepts: where, how accurate, and with what effect on the next token."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from cocomix.base.loading import micro_batch
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.plumbing.parts import Advance, in_parts
from cocomix.predictions.doubling import Promoted, promoted_tokens

DOUBLED = 2
"""Number of a concept's strongest places at which its strength is doubled."""


class Place(NamedTuple):
    """A position at which a concept is predicted."""

    window: int
    position: int
    strength: float
    """The concept's logit."""
    right: bool
    """Whether the concept is a label there."""


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
    """Next tokens that become likelier when its strength is doubled at the strongest places, one at a time."""


class _Reading(NamedTuple):
    """Results of one pass over the text."""

    predictions: Tensor
    """int64 [concepts], like the next one."""
    right: Tensor
    strengths: Tensor
    """[places, concepts], descending; -inf is padding."""
    places: Tensor
    """Their positions in the flattened text: int64 [places, concepts]."""


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

    The processes share the work, and each returns all results. They depend on the micro-batch up to rounding, and on
    nothing else of how the work is done.

    Args:
        ids: int64 [windows, seq].
        labels: the concepts of each position, int64 [windows, seq, k_attr]; a number outside the dictionary: no label.
        promoted: maximum promoted tokens per concept.
        kept: folder for partial results, for exactly this measurement; what is there is not measured again.
        places: maximum places per concept.
        task: description for the progress bars.

    Returns:
        One item per concept, in order.
    """
    ids, labels = ids.to(model.device), labels.to(model.device)
    kept /= f"micro-batch-{micro_batch(ids.shape[1])}"
    seen = _read(model, ids, labels, places, kept, task)
    there = seen.strengths > -torch.inf
    promotes = promoted_tokens(model, ids, seen.places[:DOUBLED], there[:DOUBLED], promoted, kept, task)
    concepts = torch.arange(model.config.num_concepts, device=ids.device)
    labelled = labels[(labels >= 0) & (labels < len(concepts))].bincount(minlength=len(concepts))
    right = (labels.flatten(0, 1)[seen.places] == concepts[:, None]).any(2)
    found: list[list[Place]] = [[] for _ in concepts]
    by_place = (each.tolist() for each in (seen.places, seen.strengths, right))
    for rank in zip(*by_place, strict=True):
        for concept, (place, strength, is_label) in enumerate(zip(*rank, strict=True)):
            if strength > -torch.inf:
                window, position = divmod(place, ids.shape[1])
                found[concept].append(Place(window, position, strength, is_label))
    counts = zip(seen.predictions.tolist(), seen.right.tolist(), labelled.tolist(), found, strict=True)
    return [ConceptPredictions(*each, promotes.get(concept, [])) for concept, each in enumerate(counts)]


def _read(model: CoCoMixLanguageModel, ids: Tensor, labels: Tensor, places: int, kept: Path, task: str) -> _Reading:
    concepts, seq = model.config.num_concepts, ids.shape[1]

    def read(rows: Tensor, _advance: Advance) -> bytes:
        logits = model.base_model(ids[rows], use_cache=False).concept_logits.float()
        top = logits.topk(model.config.concept_k)
        is_label = (top.indices[..., None] == labels[rows, :, None]).any(3)
        peaks = torch.full_like(logits, -torch.inf).scatter_(2, *reversed(top)).max(1)
        result = {
            "predictions": top.indices.flatten().bincount(minlength=concepts),
            "right": top.indices[is_label].bincount(minlength=concepts),
            "strengths": peaks.values,
            "places": rows[:, None] * seq + peaks.indices,
        }
        return save({name: each.cpu() for name, each in result.items()})

    batches = torch.split(torch.arange(len(ids), device=ids.device), micro_batch(seq))
    parts = {kept / f"read-{number}.safetensors": rows for number, rows in enumerate(batches)}
    in_parts(parts, read, lambda rows: len(rows) * seq, f"{task}: reading", "tokens")
    predictions, right = torch.zeros(2, concepts, dtype=torch.int64)
    strengths, at = torch.full((0, concepts), -torch.inf), torch.zeros(0, concepts, dtype=torch.int64)
    for path in parts:
        part = load(path.read_bytes())
        predictions += part["predictions"]
        right += part["right"]
        strengths, order = torch.cat([strengths, part["strengths"]]).sort(dim=0, descending=True, stable=True)
        at = torch.cat([at, part["places"]]).gather(0, order)
        strengths, at = strengths[:places], at[:places]
    return _Reading(*(each.to(ids.device) for each in (predictions, right, strengths, at)))

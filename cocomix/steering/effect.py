"""Measure the effect of steering: set a sample of concepts to given strengths and compare with no edit.

On target: the probability of the tokens that a concept promotes, and how often the autoencoder finds the concept in the
model's continuations. Off target: the loss on text, and the variety of the continuations. Control: the effect on a
concept of the edits of the other concepts in the sample, at the same strength.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from cocomix.attribution.labelling import activation_scores
from cocomix.base.loading import micro_batch
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.modeling.concept_edits import Edit
from cocomix.plumbing.parts import Advance, in_parts
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.steering.autoencoder import editing
from cocomix.steering.retokenized import Retokenizer


class Measured(NamedTuple):
    """Measurements of a concept."""

    probability: float
    """Total probability of the tokens that it promotes; mean over the positions of the text."""
    read: float
    """Share of the generated tokens at which the autoencoder finds it active."""
    loss: float
    """Loss on the text, in nats per token."""
    distinct: float
    """Share of distinct bigrams among the generated tokens (distinct-2)."""


class EditEffect(NamedTuple):
    """Effect on a concept of its own edit, and of the other concepts' edits."""

    concept: int
    strength: float
    unedited: Measured
    edited: Measured
    control: Measured
    """Mean over the edits of the other concepts."""
    success: bool
    """Whether its edit changes `probability` in the direction of the strength."""
    control_success: float
    """Share of the other concepts' edits that do."""


_COLUMNS: dict[str, pa.DataType] = {
    "sweep": pa.string(),
    "seed": pa.int64(),
    "strength": pa.float64(),
    "concept": pa.int64(),
    **{name + of: pa.float64() for of in ("", "_control") for name in (*Measured._fields, "success")},
    **{f"{name}_unedited": pa.float64() for name in Measured._fields},
}


def effects_table(sweeps: Mapping[str, Mapping[int, Sequence[EditEffect]]]) -> pa.Table:
    """A table with a row per sweep, seed, strength and concept, in order.

    The columns without a suffix, such as `probability`, are those under the concept's own edit.

    Args:
        sweeps: effects by the name of the sweep and the seed of the model.
    """
    rows = []
    for sweep, seeds in sweeps.items():
        for seed, effects in seeds.items():
            for each in effects:
                row = {"sweep": sweep, "seed": seed, "strength": each.strength, "concept": each.concept}
                row |= each.edited._asdict() | {"success": float(each.success)}
                row |= {f"{name}_control": value for name, value in each.control._asdict().items()}
                row |= {"success_control": each.control_success}
                row |= {f"{name}_unedited": value for name, value in each.unedited._asdict().items()}
                rows.append(row)
    return pa.Table.from_pylist(rows, schema=pa.schema(_COLUMNS))


class Writing(NamedTuple):
    """Settings of the continuations: one for the beginning of each window."""

    prompt_tokens: int
    new_tokens: int
    seed: int


class Bench(NamedTuple):
    """Setup for measuring edits, the same for every model."""

    base: PreTrainedModel
    """With `sae`, it finds concepts in the continuations."""
    sae: SparseAutoencoder
    concepts: Sequence[int]
    """At least 2: the other concepts of the sample are the control."""
    tokens_of: Tensor
    """The tokens that each of `concepts` promotes, at least one; -1: it has no more. int64 [concepts, tokens]."""
    text: Tensor
    """Windows of token ids held out from training, int64 [windows, context]."""
    writing: Writing
    retokenizer: Retokenizer | None = None
    """To the base model's tokens; None: it reads those of `text`."""


class _Measurements(NamedTuple):
    """Effects of edits: per concept of the sample [edits, concepts], or overall [edits]; float64."""

    probability: Tensor
    loss: Tensor
    read: Tensor
    distinct: Tensor

    def of(self, edit: int, concept: int) -> Measured:
        return Measured(
            float(self.probability[edit, concept]),
            float(self.read[edit, concept]),
            float(self.loss[edit]),
            float(self.distinct[edit]),
        )


@torch.no_grad()
def sample_concepts(models: Sequence[CoCoMixLanguageModel], text: Tensor, count: int, seed: int = 0) -> list[int]:
    """Sample concepts that every model mixes somewhere in a text [windows, context].

    The result has fewer than `count` if there are not as many. Concepts that are never predicted are left out, since
    they had no part in training.
    """
    parts = torch.split(text, micro_batch(text.shape[1]))
    mixed = [set(chain.from_iterable(_mixed(model, some) for some in parts)) for model in models]
    shared = sorted(set.intersection(*mixed))
    order = torch.randperm(len(shared), generator=torch.Generator().manual_seed(seed))[:count]
    return [shared[each] for each in order.tolist()]


def _mixed(model: CoCoMixLanguageModel, text: Tensor) -> list[int]:
    found: list[int] = torch.unique(model.concepts(text).indices).tolist()
    return found


@torch.no_grad()
def steering_effects(
    model: PreTrainedModel,
    bench: Bench,
    strengths: Sequence[float],
    edit: Callable[[int, float], Edit],
    kept: Path,
    name: str,
) -> list[EditEffect]:
    """Measure the edits `edit(concept, strength)` of all concepts and strengths, applied at every position.

    Each edit takes a forward pass over the text and a continuation of each window's beginning; all edits share the same
    random numbers. The processes share the edits, and each returns all effects.

    Args:
        model: a CoCoMix model, or the base model itself, which is edited through the autoencoder.
        edit: makes the edit: `Set`, or another edit of a concept and a number.
        kept: folder for results, for exactly this measurement; results in it are not measured again.
        name: description for the progress bar.
    """
    concepts = bench.concepts
    grid = [[], *([edit(concept, strength)] for strength in strengths for concept in concepts)]
    seen = _on_all(model, bench, grid, kept, name)
    return [
        _effect(number, concepts, strength, seen, 1 + row * len(concepts))
        for row, strength in enumerate(strengths)
        for number in range(len(concepts))
    ]


def _effect(number: int, concepts: Sequence[int], strength: float, seen: _Measurements, first: int) -> EditEffect:
    """Effect on concept `number` of the sample; the edits of this strength begin at index `first`."""
    unedited = seen.of(0, number)
    edited = [seen.of(first + each, number) for each in range(len(concepts))]
    others = edited[:number] + edited[number + 1 :]

    def succeeds(after: Measured) -> bool:
        return (after.probability - unedited.probability) * strength > 0

    return EditEffect(
        concept=concepts[number],
        strength=strength,
        unedited=unedited,
        edited=edited[number],
        control=Measured(*(fmean(each) for each in zip(*others, strict=True))),
        success=succeeds(edited[number]),
        control_success=fmean(map(succeeds, others)),
    )


def _on_all(model: PreTrainedModel, bench: Bench, grid: list[list[Edit]], kept: Path, name: str) -> _Measurements:
    """Measure the edits of a grid in shares, which the processes divide among them; a share is one batch.

    A share has at most the edits of one strength, so that there are enough shares for all processes, and a kill loses
    little work. The shares do not depend on the number of processes.
    """
    most = micro_batch(bench.writing.prompt_tokens + bench.writing.new_tokens) // len(bench.text)
    size = max(1, min(most, len(bench.concepts)))
    shares = {kept / f"{start}-{size}.safetensors": grid[start : start + size] for start in range(0, len(grid), size)}
    noise = _noise(bench.writing, len(bench.text), model.config.vocab_size).to(bench.text.device)

    def measured(edits: list[list[Edit]], _advance: Advance) -> bytes:
        seen = _Measurements(*_on_text(model, bench, edits), *_on_writing(model, bench, noise, edits))
        return save({name: found.double() for name, found in seen._asdict().items()})

    in_parts(shares, measured, len, name, "edits")
    parts = [load(path.read_bytes()) for path in shares]
    return _Measurements(*(torch.cat([part[name] for part in parts]) for name in _Measurements._fields))


def _on_text(model: PreTrainedModel, bench: Bench, grid: Sequence[list[Edit]]) -> tuple[Tensor, Tensor]:
    """The probability of each concept's tokens [edits, concepts] and the loss [edits]: means over the text."""
    rows, edits = bench.text.repeat(len(grid), 1), _by_row(grid, len(bench.text))
    masses, losses = [], []
    for start in range(0, len(rows), size := micro_batch(rows.shape[1])):
        some = rows[start : start + size]
        with editing(model, bench.sae, edits[start : start + size]) as options:
            logits = model(some, use_cache=False, **options).logits[:, :-1].float()
        whole = logits.logsumexp(-1, keepdim=True)
        watched = bench.tokens_of.flatten().to(logits.device)
        probabilities = (logits[..., watched.clamp(min=0)] - whole).exp() * (watched >= 0)
        masses.append(probabilities.view(*logits.shape[:2], *bench.tokens_of.shape).sum(-1).mean(1))
        losses.append((whole - logits.gather(2, some[:, 1:, None])).mean((1, 2)))
    return _over_windows(torch.cat(masses), len(bench.text)), _over_windows(torch.cat(losses), len(bench.text))


def _on_writing(
    model: PreTrainedModel, bench: Bench, noise: Tensor, grid: Sequence[list[Edit]]
) -> tuple[Tensor, Tensor]:
    """How often the autoencoder finds each concept in continuations [edits, concepts]; their distinct-2 [edits]."""
    windows, start = len(bench.text), bench.writing.prompt_tokens
    rows = bench.text[:, :start].repeat(len(grid), 1)
    with editing(model, bench.sae, _by_row(grid, windows)) as options:
        written = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=len(noise),
            do_sample=False,
            logits_processor=LogitsProcessorList([_Drawn(noise)]),
            eos_token_id=None,
            **options,
        )
    if bench.retokenizer:
        ids, of_continuation = bench.retokenizer.retokenized(written, start)
    else:
        ids, of_continuation = (
            written,
            (torch.arange(written.shape[1]) >= start).expand(written.shape).to(written.device),
        )
    latents, _ = activation_scores(bench.base, bench.sae, ids)
    found = bench.sae.as_concepts(latents)
    active = torch.where(found.values != 0, found.indices, -1).view(*ids.shape, -1)
    wanted = torch.tensor(bench.concepts, device=active.device)
    is_found = (active[..., None] == wanted).any(2) & of_continuation[..., None]
    read = is_found.sum(1) / of_continuation.sum(1, keepdim=True).clamp(min=1)
    new = written[:, start:]
    pairs = (new[:, :-1] * model.config.vocab_size + new[:, 1:]).view(len(grid), -1)
    return _over_windows(read, windows), torch.tensor([len(torch.unique(each)) / len(each) for each in pairs])


def _over_windows(values: Tensor, windows: int) -> Tensor:
    """Means over the windows of each edit: [edits * windows, ...] to [edits, ...], on the CPU."""
    return values.view(-1, windows, *values.shape[1:]).mean(1).cpu()


def _by_row(grid: Sequence[list[Edit]], windows: int) -> list[list[Edit]]:
    """The edits of each row, for a batch with all windows under each edit."""
    return [edits for edits in grid for _ in range(windows)]


def _noise(writing: Writing, windows: int, vocab: int) -> Tensor:
    """Gumbel noise [new_tokens, windows, vocab]: the argmax of logits plus noise is a sample (Gumbel-max trick)."""
    generator = torch.Generator().manual_seed(writing.seed)
    drawn = torch.empty(writing.new_tokens, windows, vocab)
    return -drawn.exponential_(generator=generator).log_()


class _Drawn(LogitsProcessor):
    """Samples by adding the same Gumbel noise under every edit, so that continuations differ only by their edits.

    A random generator would give each row its own numbers, and results would depend on the batch's composition.
    """

    def __init__(self, noise: Tensor) -> None:
        self._steps = iter(noise)

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        noise = next(self._steps)
        return scores + noise.repeat(len(scores) // len(noise), 1)

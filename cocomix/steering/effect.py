"""Does steering do what it says? Concepts of a sample are given strengths, and what comes of it is measured.

On target: the probability of the tokens that a concept promotes, and how often the autoencoder, reading what the model
then writes, finds the concept. Off target: the loss on text, and how varied the writing is. Control: what the edits of
the other concepts of the sample, with the same strength, do to this one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import ceil
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from cocomix.attribution.score import activations_of
from cocomix.base import micro_batch
from cocomix.distributed import totals
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.modeling.concept_edits import Edit
from cocomix.progress import progress
from cocomix.runtime import runtime
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.steering.autoencoder import concepts_edited


class Measured(NamedTuple):
    """What is seen of a concept."""

    probability: float
    """Of the tokens that it promotes, together; the mean over the positions of the text."""
    read: float
    """Share of the generated tokens at which the autoencoder finds it active."""
    loss: float
    """Of the text, nats a token."""
    distinct: float
    """Share of different ones among the pairs of neighbouring generated tokens (distinct-2)."""


class Effect(NamedTuple):
    """What becomes of a concept by its own edit, and by those of others."""

    concept: int
    strength: float
    unedited: Measured
    edited: Measured
    control: Measured
    """The mean over the edits of the other concepts."""
    success: bool
    """Whether its edit changes `probability` in the direction of the strength."""
    control_success: float
    """Share of the others' edits that do."""


_COLUMNS: dict[str, pa.DataType] = {
    "sweep": pa.string(),
    "seed": pa.int64(),
    "strength": pa.float64(),
    "concept": pa.int64(),
    **{name + of: pa.float64() for of in ("", "_control") for name in (*Measured._fields, "success")},
    **{f"{name}_unedited": pa.float64() for name in Measured._fields},
}


def effects_table(sweeps: Mapping[str, Mapping[int, Sequence[Effect]]]) -> pa.Table:
    """A row a sweep, seed, strength and concept, in order; `probability` and its like are by the concept's own edit.

    Args:
        sweeps: effects by the name of the sweep, and by the seed of the model.
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
    """The continuations that are read: of each window's beginning one."""

    prompt_tokens: int
    new_tokens: int
    seed: int


class _Seen(NamedTuple):
    """What edits do: to all concepts of the sample [edits, concepts], and in all [edits]; float64."""

    probability: Tensor
    read: Tensor
    loss: Tensor
    distinct: Tensor

    def of(self, edit: int, concept: int) -> Measured:
        return Measured(
            float(self.probability[edit, concept]),
            float(self.read[edit, concept]),
            float(self.loss[edit]),
            float(self.distinct[edit]),
        )


@torch.no_grad()
def sample_concepts(models: Sequence[CoCoMixForCausalLM], text: Tensor, count: int, seed: int = 0) -> list[int]:
    """Some of the concepts that each model mixes somewhere in a text [windows, context], drawn at random.

    Fewer than `count`, where there are not as many. Concepts that are never predicted have had no part in training.
    """
    parts = torch.split(text, micro_batch(text.shape[1]))
    mixed = [set(chain.from_iterable(_mixed(model, some) for some in parts)) for model in models]
    shared = sorted(set.intersection(*mixed))
    order = torch.randperm(len(shared), generator=torch.Generator().manual_seed(seed))[:count]
    return [shared[each] for each in order.tolist()]


def _mixed(model: CoCoMixForCausalLM, text: Tensor) -> list[int]:
    found: list[int] = torch.unique(model.concepts(text).indices).tolist()
    return found


@torch.no_grad()
def steering_effects(
    model: PreTrainedModel,
    base: PreTrainedModel,
    sae: SparseAutoencoder,
    concepts: Sequence[int],
    tokens_of: Tensor,
    text: Tensor,
    strengths: Sequence[float],
    edit: Callable[[int, float], Edit],
    writing: Writing,
    name: str = "steering",
) -> list[Effect]:
    """Measure the edits `edit(concept, strength)` of all concepts and strengths, applied at every position.

    Each of them costs a forward pass over the text and a continuation of each window's beginning; all draw the same
    random numbers. Several processes share the edits, and each gets all effects.

    Args:
        model: a CoCoMix model, or `base` itself, which is edited through the autoencoder.
        concepts: at least 2: the others of the sample are a concept's control.
        tokens_of: the tokens that each of `concepts` promotes, int64 [concepts, tokens].
        text: windows of token ids that no model was trained on, int64 [windows, context].
        edit: makes the edit: `Set`, or another one that takes a concept and a number.
    """
    grid = [[], *([edit(concept, strength)] for strength in strengths for concept in concepts)]
    seen = _on_all(model, base, sae, concepts, tokens_of, text, grid, writing, name)
    return [
        _effect(number, concepts, strength, seen, 1 + row * len(concepts))
        for row, strength in enumerate(strengths)
        for number in range(len(concepts))
    ]


def _effect(number: int, concepts: Sequence[int], strength: float, seen: _Seen, first: int) -> Effect:
    """Of the concept with this number in the sample, whose strength's edits begin at `first`."""
    unedited = seen.of(0, number)
    edited = [seen.of(first + each, number) for each in range(len(concepts))]
    others = edited[:number] + edited[number + 1 :]

    def succeeds(after: Measured) -> bool:
        return (after.probability - unedited.probability) * strength > 0

    return Effect(
        concept=concepts[number],
        strength=strength,
        unedited=unedited,
        edited=edited[number],
        control=Measured(*(fmean(each) for each in zip(*others, strict=True))),
        success=succeeds(edited[number]),
        control_success=fmean(map(succeeds, others)),
    )


def _on_all(
    model: PreTrainedModel,
    base: PreTrainedModel,
    sae: SparseAutoencoder,
    concepts: Sequence[int],
    tokens_of: Tensor,
    text: Tensor,
    grid: Sequence[list[Edit]],
    writing: Writing,
    name: str,
) -> _Seen:
    """The edits of a grid, dealt to the processes some at a time, which are rows of one batch."""
    noise = _noise(writing, len(text), model.config.vocab_size).to(text.device)
    most = max(1, micro_batch(writing.prompt_tokens + writing.new_tokens) // len(text))
    rounds = ceil(len(grid) / (most * runtime().world_size))
    size = ceil(len(grid) / (rounds * runtime().world_size))  # so that no process has much more than another
    starts = range(0, len(grid), size)[runtime().rank :: runtime().world_size]
    found = torch.zeros(len(grid), 2 * len(concepts) + 2, dtype=torch.float64)
    with progress(name, sum(len(grid[start : start + size]) for start in starts), "edits") as bar:
        for start in starts:
            some = grid[start : start + size]
            probability, loss = _on_text(model, sae, text, tokens_of, some)
            read, distinct = _on_writing(model, base, sae, concepts, text[:, : writing.prompt_tokens], noise, some)
            found[start : start + size] = torch.cat(
                [probability, read, loss[:, None], distinct[:, None]], dim=1
            ).double()
            bar.advance(len(some))
    found = torch.tensor(totals(*found.flatten().tolist()), dtype=torch.float64).view_as(found)
    probability, read, rest = torch.split(found, [len(concepts), len(concepts), 2], dim=1)
    return _Seen(probability, read, *rest.unbind(1))


def _on_text(
    model: PreTrainedModel, sae: SparseAutoencoder, text: Tensor, tokens_of: Tensor, grid: Sequence[list[Edit]]
) -> tuple[Tensor, Tensor]:
    """The probability of each concept's tokens [edits, concepts], and the loss [edits]: means over a text."""
    rows, edits = text.repeat(len(grid), 1), _by_row(grid, len(text))
    masses, losses = [], []
    for start in range(0, len(rows), size := micro_batch(text.shape[1])):
        some = rows[start : start + size]
        with _edited(model, sae, edits[start : start + size]) as options:
            logits = model(some, use_cache=False, **options).logits[:, :-1].float()
        whole = logits.logsumexp(-1, keepdim=True)
        probabilities = (logits[..., tokens_of.flatten()] - whole).exp()
        masses.append(probabilities.view(*logits.shape[:2], *tokens_of.shape).sum(-1).mean(1))
        losses.append((whole - logits.gather(2, some[:, 1:, None])).mean((1, 2)))
    return _over_windows(torch.cat(masses), len(text)), _over_windows(torch.cat(losses), len(text))


def _on_writing(
    model: PreTrainedModel,
    base: PreTrainedModel,
    sae: SparseAutoencoder,
    concepts: Sequence[int],
    prompts: Tensor,
    noise: Tensor,
    grid: Sequence[list[Edit]],
) -> tuple[Tensor, Tensor]:
    """How often the autoencoder finds each concept in continuations [edits, concepts]; how varied they are [edits]."""
    rows = prompts.repeat(len(grid), 1)
    with _edited(model, sae, _by_row(grid, len(prompts))) as options:
        written = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=len(noise),
            do_sample=False,
            logits_processor=LogitsProcessorList([_Drawn(noise)]),
            eos_token_id=None,
            **options,
        )
    latents, _ = activations_of(base, sae, written, sae.config.layer)
    found = sae.as_concepts(latents)
    active = torch.where(found.values != 0, found.indices, -1).view(*written.shape, -1)[:, prompts.shape[1] :]
    wanted = torch.tensor(concepts, device=active.device)
    read = (active[..., None] == wanted).any(2).float().mean(1)
    new = written[:, prompts.shape[1] :]
    pairs = (new[:, :-1] * model.config.vocab_size + new[:, 1:]).view(len(grid), -1)
    return _over_windows(read, len(prompts)), torch.tensor([len(torch.unique(each)) / len(each) for each in pairs])


def _over_windows(values: Tensor, windows: int) -> Tensor:
    """Means over the windows of each edit: [edits * windows, ...] to [edits, ...], on the CPU."""
    return values.view(-1, windows, *values.shape[1:]).mean(1).cpu()


def _by_row(grid: Sequence[list[Edit]], windows: int) -> list[list[Edit]]:
    """The edits of each row, of a batch in which every edit has all windows."""
    return [edits for edits in grid for _ in range(windows)]


@contextmanager
def _edited(model: PreTrainedModel, sae: SparseAutoencoder, edits: Sequence[list[Edit]]) -> Iterator[dict[str, Any]]:
    """Inside, a call of `model` with the options that come has its rows edited."""
    if isinstance(model, CoCoMixForCausalLM):
        yield {"concept_edits": edits}
    else:
        with concepts_edited(model, sae, edits):
            yield {}


def _noise(writing: Writing, windows: int, vocab: int) -> Tensor:
    """From Gumbel's distribution, [new_tokens, windows, vocab]: the largest of logits plus this is a draw from them."""
    generator = torch.Generator().manual_seed(writing.seed)
    drawn = torch.empty(writing.new_tokens, windows, vocab)
    return -drawn.exponential_(generator=generator).log_()


class _Drawn(LogitsProcessor):
    """Makes the likeliest token a draw, by the same noise whatever the edit: a continuation differs by its edit alone.

    A generator would give each row of a batch its own numbers, so that a figure would depend on what shares the batch.
    """

    def __init__(self, noise: Tensor) -> None:
        self._steps = iter(noise)

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        noise = next(self._steps)
        return scores + noise.repeat(len(scores) // len(noise), 1)

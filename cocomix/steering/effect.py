"""Does steering do what it says? Concepts of a sample are given strengths, and what comes of it is measured.

On target: the probability of the tokens that a concept promotes, and how often the autoencoder, reading what the model
then writes, finds the concept. Off target: the loss on text, and how varied the writing is. Control: what the edits of
the other concepts of the sample, with the same strength, do to this one; random edits succeed half of the time.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.attribution.score import activations_of
from cocomix.base import micro_batch
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.modeling.concept_edits import Edit, Set
from cocomix.progress import progress
from cocomix.sae.autoencoder import SparseAutoencoder

STRENGTHS = (-10.0, -5.0, -2.0, 2.0, 5.0, 10.0)


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


class Summary(NamedTuple):
    """Effects of one strength, averaged over concepts."""

    strength: float
    success: float
    control_success: float
    read: float
    """As of `Measured`, by the own edit; without an edit; by the others'."""
    read_unedited: float
    read_control: float
    loss_change: float
    distinct_change: float


class _Run(NamedTuple):
    """What one edit does: to all concepts of the sample [concepts], and in all."""

    probability: Tensor
    read: Tensor
    loss: float
    distinct: float

    def of(self, number: int) -> Measured:
        return Measured(float(self.probability[number]), float(self.read[number]), self.loss, self.distinct)


@torch.no_grad()
def sample_concepts(model: CoCoMixForCausalLM, text: Tensor, count: int, seed: int = 0) -> Tensor:
    """Some of the concepts that `model` mixes somewhere in a text [windows, context], drawn at random: int64 [count].

    Fewer, where it mixes fewer. Concepts that are never predicted have had no part in training.
    """
    parts = torch.split(text, micro_batch(text.shape[1]))
    mixed = torch.cat([model.concepts(some).indices.flatten() for some in parts])
    mixed = torch.unique(mixed).cpu()
    return mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(seed))[:count]]


@torch.no_grad()
def steering_effects(
    model: CoCoMixForCausalLM,
    base: PreTrainedModel,
    sae: SparseAutoencoder,
    concepts: Sequence[int],
    promoted: Tensor,
    text: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    edit: Callable[[int, float], Edit] = Set,
    prompt_tokens: int = 8,
    new_tokens: int = 24,
    seed: int = 0,
) -> list[Effect]:
    """Measure the edits `edit(concept, strength)` of all concepts and strengths, applied at every position.

    Each of them costs a forward pass over the text and a continuation of each window's beginning, which all edits
    draw with the same random numbers.

    Args:
        concepts: at least 2: the others of the sample are a concept's control.
        promoted: the tokens that each of `concepts` promotes, int64 [concepts, tokens].
        text: windows of token ids that no model was trained on, int64 [windows, context].
        edit: makes the edit; `Scale` for the paper's, which does nothing where the concept is not predicted.
    """

    def run(edits: list[Edit]) -> _Run:
        probability, loss = _on_text(model, text, promoted, edits)
        read, distinct = _on_writing(model, base, sae, concepts, text[:, :prompt_tokens], new_tokens, seed, edits)
        return _Run(probability, read, loss, distinct)

    unedited, effects = run([]), []
    with progress("steering", len(strengths) * len(concepts), "edits") as bar:
        for strength in strengths:
            runs = []
            for concept in concepts:
                runs.append(run([edit(concept, strength)]))
                bar.advance(1)
            effects += [_effect(number, concepts, strength, unedited, runs) for number in range(len(concepts))]
    return effects


def summaries(effects: Sequence[Effect]) -> list[Summary]:
    """The effects, averaged over concepts: a row a strength."""

    def mean(of: Callable[[Effect], float], rows: Sequence[Effect]) -> float:
        return fmean(of(each) for each in rows)

    found = []
    for strength in dict.fromkeys(each.strength for each in effects):
        rows = [each for each in effects if each.strength == strength]
        found.append(
            Summary(
                strength=strength,
                success=mean(lambda each: each.success, rows),
                control_success=mean(lambda each: each.control_success, rows),
                read=mean(lambda each: each.edited.read, rows),
                read_unedited=mean(lambda each: each.unedited.read, rows),
                read_control=mean(lambda each: each.control.read, rows),
                loss_change=mean(lambda each: each.edited.loss - each.unedited.loss, rows),
                distinct_change=mean(lambda each: each.edited.distinct - each.unedited.distinct, rows),
            )
        )
    return found


def _effect(number: int, concepts: Sequence[int], strength: float, unedited: _Run, runs: Sequence[_Run]) -> Effect:
    before = unedited.of(number)
    seen = [each.of(number) for each in runs]
    others = seen[:number] + seen[number + 1 :]

    def succeeds(after: Measured) -> bool:
        return (after.probability - before.probability) * strength > 0

    return Effect(
        concept=concepts[number],
        strength=strength,
        unedited=before,
        edited=seen[number],
        control=Measured(*(fmean(each) for each in zip(*others, strict=True))),
        success=succeeds(seen[number]),
        control_success=fmean(map(succeeds, others)),
    )


def _on_text(model: CoCoMixForCausalLM, text: Tensor, promoted: Tensor, edits: list[Edit]) -> tuple[Tensor, float]:
    """The probability of each concept's tokens [concepts], and the loss: means over the positions of a text."""
    mass, loss = torch.zeros(len(promoted), device=text.device), 0.0
    for some in torch.split(text, micro_batch(text.shape[1])):
        logs = model(some, use_cache=False, concept_edits=edits).logits[:, :-1].float().log_softmax(-1)
        mass += logs.flatten(0, 1)[:, promoted].exp().sum((0, 2))
        loss -= float(logs.gather(2, some[:, 1:, None]).sum())
    predictions = text[:, 1:].numel()
    return mass / predictions, loss / predictions


def _on_writing(
    model: CoCoMixForCausalLM,
    base: PreTrainedModel,
    sae: SparseAutoencoder,
    concepts: Sequence[int],
    prompts: Tensor,
    new_tokens: int,
    seed: int,
    edits: list[Edit],
) -> tuple[Tensor, float]:
    """How often the autoencoder finds each concept in continuations [concepts], and how varied they are."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            concept_edits=edits,
        )
    latents, _ = activations_of(base, sae, written, sae.config.layer)
    found = sae.as_concepts(latents)
    active = torch.where(found.values != 0, found.indices, -1).view(*written.shape, -1)[:, prompts.shape[1] :]
    wanted = torch.tensor(concepts, device=active.device)
    read = (active[..., None] == wanted).any(2).float().mean((0, 1))
    new = written[:, prompts.shape[1] :]
    pairs = torch.stack([new[:, :-1], new[:, 1:]], dim=-1).flatten(0, 1)
    return read.cpu(), len(torch.unique(pairs, dim=0)) / len(pairs)

"""Does steering do what it says? Concepts of a sample are given strengths, and what comes of it is measured.

    python -m cocomix.steering.effect                           # reads artifacts/ and params.yaml, prints a table
    python -m cocomix.steering.effect --edit scale-before       # as the paper steers

On target: the probability of the tokens that a concept promotes, and how often the autoencoder, reading what the model
then writes, finds the concept. Off target: the loss on text, and how varied the writing is. Control: what the edits of
the other concepts of the sample, with the same strength, do to this one. Columns of the table, means over concepts:

- success: share of the concepts whose tokens become likelier where the strength is positive, or less likely where it is
  negative; by the concept's own edit, and (control) by those of the others
- log ratio: of the probability of those tokens, over that without an edit; own and control
- read: share of the generated tokens at which the autoencoder finds the concept; own, control, and without an edit
- loss, distinct: changes of the loss on the text and of distinct-2 of the writing, against no edit
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import log
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.attribution.score import activations_of
from cocomix.base import micro_batch
from cocomix.errors import UserError
from cocomix.explain.lens import promoted
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.modeling.concept_edits import Edit, Scale, Set
from cocomix.progress import progress
from cocomix.sae.autoencoder import SparseAutoencoder
from cocomix.steering.project import default_model, load_extractor, load_model
from cocomix.tokens.windows import Tokens

PROMOTED = 10
"""Tokens that are watched for each concept."""

PROMPT_TOKENS, NEW_TOKENS = 8, 24
"""Of each continuation."""

STRENGTHS = (-10.0, -5.0, -2.0, 2.0, 5.0, 10.0)

EDITS: dict[str, Callable[[int, float], Edit]] = {
    "set": Set,
    "scale": Scale,
    "scale-before": partial(Scale, before_selection=True),
}


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
    """The effects of one strength, averaged over concepts: see the module."""

    strength: float
    success: float
    success_control: float
    log_ratio: float
    log_ratio_control: float
    read: float
    read_control: float
    read_unedited: float
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
    tokens_of: Tensor,
    text: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    edit: Callable[[int, float], Edit] = Set,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    seed: int = 0,
) -> list[Effect]:
    """Measure the edits `edit(concept, strength)` of all concepts and strengths, applied at every position.

    Each of them costs a forward pass over the text and a continuation of each window's beginning, which all edits
    draw with the same random numbers.

    Args:
        concepts: at least 2: the others of the sample are a concept's control.
        tokens_of: the tokens that each of `concepts` promotes, int64 [concepts, tokens].
        text: windows of token ids that no model was trained on, int64 [windows, context].
        edit: makes the edit; `Scale` for the paper's, which does nothing where the concept is not predicted.
    """

    def run(edits: list[Edit]) -> _Run:
        probability, loss = _on_text(model, text, tokens_of, edits)
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

    def mean(of: Callable[[Effect], float]) -> float:
        return fmean(of(each) for each in rows)

    found = []
    for strength in dict.fromkeys(each.strength for each in effects):
        rows = [each for each in effects if each.strength == strength]
        found.append(
            Summary(
                strength=strength,
                success=mean(lambda each: each.success),
                success_control=mean(lambda each: each.control_success),
                log_ratio=mean(lambda each: log(each.edited.probability / each.unedited.probability)),
                log_ratio_control=mean(lambda each: log(each.control.probability / each.unedited.probability)),
                read=mean(lambda each: each.edited.read),
                read_control=mean(lambda each: each.control.read),
                read_unedited=mean(lambda each: each.unedited.read),
                loss_change=mean(lambda each: each.edited.loss - each.unedited.loss),
                distinct_change=mean(lambda each: each.edited.distinct - each.unedited.distinct),
            )
        )
    return found


def table(rows: Sequence[Summary]) -> str:
    """The rows for people."""
    lines = ["strength  success (control)  log ratio (control)  read (control, unedited)     loss  distinct"]
    lines += [
        f"{each.strength:8g} {each.success:8.0%} ({each.success_control:.0%})"
        f" {each.log_ratio:13.2f} ({each.log_ratio_control:.2f})"
        f" {each.read:10.1%} ({each.read_control:.1%}, {each.read_unedited:.1%})"
        f" {each.loss_change:+10.3f} {each.distinct_change:+9.3f}"
        for each in rows
    ]
    return "\n".join(lines)


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


def _on_text(model: CoCoMixForCausalLM, text: Tensor, tokens_of: Tensor, edits: list[Edit]) -> tuple[Tensor, float]:
    """The probability of each concept's tokens [concepts], and the loss: means over the positions of a text."""
    mass, loss = torch.zeros(len(tokens_of), device=text.device), 0.0
    for some in torch.split(text, micro_batch(text.shape[1])):
        logs = model(some, use_cache=False, concept_edits=edits).logits[:, :-1].float().log_softmax(-1)
        mass += logs.flatten(0, 1)[:, tokens_of].exp().sum((0, 2))
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Read artifacts/, measure, print.

    Raises:
        UserError: when an artifact is missing, or a number is out of its range.
    """
    parser = argparse.ArgumentParser(prog="python -m cocomix.steering.effect")
    parser.add_argument("--model", type=Path, help="its folder; default: artifacts/models/cocomix-<first seed>")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="of the pipeline that made it")
    parser.add_argument("--concepts", type=int, default=16, help="to sample, at least 2 (default: 16)")
    parser.add_argument("--windows", type=int, default=8, help="validation windows to read (default: 8)")
    parser.add_argument("--edit", choices=EDITS, default="set", help="set strengths, or scale them (default: set)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the writing")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    asked = parser.parse_args(arguments)
    model, _ = load_model(asked.model or default_model(asked.artifacts))
    base, sae, _ = load_extractor(asked.artifacts, model)
    tokens = Tokens(asked.artifacts / "tokens")
    validation = tokens.windows("validation")
    if not 0 < asked.windows <= len(validation):
        raise UserError(f"--windows: {asked.windows}; allowed: 1 to {len(validation)}")
    chosen = np.random.default_rng(asked.seed).choice(len(validation), asked.windows, replace=False)
    text = torch.from_numpy(validation[np.sort(chosen)].astype(np.int64)).to(model.device)
    concepts = sample_concepts(model, text, asked.concepts, asked.seed).tolist()
    if len(concepts) < 2:
        raise UserError(f"--concepts: {asked.concepts}; at least 2 are needed, and mixed somewhere in the text")
    tokens_of = promoted(base, sae, model.config.vocab_size, PROMOTED).numbers[concepts]
    effects = steering_effects(
        model,
        base,
        sae,
        concepts,
        tokens_of,
        text,
        edit=EDITS[asked.edit],
        new_tokens=min(NEW_TOKENS, tokens.context - PROMPT_TOKENS),
        seed=asked.seed,
    )
    rows = summaries(effects)
    print("\n".join(json.dumps(each._asdict()) for each in rows) if asked.json else table(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

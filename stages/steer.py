"""Stage `steer`: measure the CoCoMix models' concept predictions and the effect of edits, also on the base model."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cocomix.attribution.labels import ConceptLabels
from cocomix.base.loading import load_base
from cocomix.explain.lens import promoted
from cocomix.modeling.concept_edits import Edit, Scale, Set
from cocomix.params import Params, SteerParams, mixes_concepts
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.device import device
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.once import once
from cocomix.plumbing.origins import check_origins
from cocomix.plumbing.runtime import runtime
from cocomix.predictions import measure
from cocomix.predictions.measure import ConceptPredictions, measure_predictions
from cocomix.predictions.table import PREDICTED, SCHEMA, predictions_table
from cocomix.sae.autoencoder import load_sae
from cocomix.shapes.methods import read_methods
from cocomix.steering import effect
from cocomix.steering.averages import Sweep, read_sweeps
from cocomix.steering.effect import Bench, EditEffect, Writing, effects_table, sample_concepts, steering_effects
from cocomix.steering.retokenized import Retokenizer
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json

EDITS: dict[str, Callable[[int, float], Edit]] = {"set": Set, "scale": partial(Scale, before_selection=True)}
"""Edits of the CoCoMix models: set a strength at every position, or scale the logit z as in the paper (section 3.2)."""

CANDIDATES = 8
"""Promoted tokens of a base model with its own tokenizer, for each of the students' tokens that is watched: several
begin with the same one."""


def run(params: Params) -> None:
    """Make artifacts/steering; the processes share the work. It has empty tables if no model mixes concepts."""
    section = params.steer
    read = BaseTokens(ARTIFACTS)
    tokens = read.students
    inputs = {name: Artifact(ARTIFACTS / name) for name in ("base", "sae")} | read.inputs
    concepts, methods = (Artifact(ARTIFACTS / name) for name in ("concepts", "methods"))
    steered = {name: each for name, each in read_methods(methods).items() if mixes_concepts(each.parameters)}
    trained = {
        name: {seed: Artifact(ARTIFACTS / f"models/{name}-{seed}") for seed in params.pretrain.seeds}
        for name in steered
    }
    folders = [folder for by_seed in trained.values() for folder in by_seed.values()]

    def compute(work: Work) -> Mapping[str, Any]:
        sweeps = _sweeps(work, section, read, inputs, trained) if trained else {}
        tables = [_predicted(work, section, tokens, concepts, folder) for folder in folders]
        if runtime().rank == 0:
            with work.write(PREDICTED) as pending:
                table = pa.concat_tables([SCHEMA.empty_table(), *tables])
                pq.write_table(table, pending.path, compression="zstd")
                pending.rows = len(table)
            with work.write("effects.parquet") as pending:
                table = effects_table(sweeps)
                pq.write_table(table, pending.path, compression="zstd")
                pending.rows = len(table)
            found = read_sweeps(work.files / "effects.parquet")
            (work.side / "metrics.json").write_bytes(to_json({each.name: _metrics(each) for each in found}))
            _write_plot(work.side / "steer.csv", found)
        return {"models": [folder.path.name for folder in folders]}

    side = {"metrics.json": Path("metrics/steer.json"), "steer.csv": Path("plots/steer.csv")}
    models = {f"models/{folder.path.name}": folder for folder in folders}
    learned = {f"supervision.{name}": each.supervision for name, each in steered.items()}
    check_origins({**inputs, "concepts": concepts, "methods": methods})
    opened: dict[str, Artifact | str] = {**inputs, "concepts": concepts, **models, **learned}
    produce("steer", ARTIFACTS / "steering", opened, section.model_dump(), compute, side)


def _sweeps(
    work: Work,
    section: SteerParams,
    read: BaseTokens,
    inputs: Mapping[str, Artifact],
    trained: Mapping[str, Mapping[int, Artifact]],
) -> dict[str, dict[int, list[EditEffect]]]:
    """The effects by sweep and seed; earlier measurements are reused, see `once`.

    Args:
        trained: the models by method and seed.
    """
    tokens, text = read.students, _text(read.students, section)
    folders = [folder for by_seed in trained.values() for folder in by_seed.values()]
    models = {folder.path.name: load_base(folder, tokens.context) for folder in folders}
    key = {name: each.digest for name, each in inputs.items()} | section.model_dump(exclude={"read_windows"})

    def sample() -> list[int]:
        return sample_concepts(list(models.values()), text, section.concepts, section.seed)

    digests = {"models": [folder.digest for folder in folders]}
    # Sampled once: rounding decides which concepts are mixed, and results of another sample must not be reused.
    concepts = once("steered concepts", key | digests, sample, list[int], effect.__file__)
    if len(concepts) < 2:
        raise UserError(
            f"steer.windows: in {section.windows}, all models mix {len(concepts)} concepts in common; at least 2 are "
            "needed, one to be steered and one for its control"
        )
    base, sae = load_base(inputs["base"], read.context), load_sae(inputs["sae"])
    candidates = section.promoted if read.shared else CANDIDATES * section.promoted
    tokens_of = promoted(base, sae, read.vocab_size, candidates).numbers[concepts]
    writing = Writing(section.prompt_tokens, section.new_tokens, section.seed)
    bench = of_base = Bench(base, sae, concepts, tokens_of[:, : section.promoted], text, writing)
    if not read.shared:
        of_base = bench._replace(text=_text(read, section))
        retokenizer = Retokenizer(tokens.tokenizer(), read.tokenizer(), read.context)
        students_tokens = retokenizer.promoted(tokens_of, read.texts(), section.promoted)
        if nameless := [each for each, own in zip(concepts, students_tokens.tolist(), strict=True) if own[0] < 0]:
            raise UserError(
                f"steer.concepts: concept {nameless[0]} promotes no token that a student has; another steer.seed or "
                "steer.concepts samples others"
            )
        bench = bench._replace(tokens_of=students_tokens, retokenizer=retokenizer)

    def measure(model: PreTrainedModel, folder: Artifact, edit: str, bench: Bench) -> list[EditEffect]:
        def effects() -> list[EditEffect]:
            kept = work.scratch / f"{folder.path.name}-{edit}"
            name = f"steering {folder.path.name}: {edit}"
            return steering_effects(model, bench, section.strengths, EDITS[edit], kept, name)

        what = key | {"model": folder.digest, "edit": edit, "concepts": concepts, "watched": bench.tokens_of.tolist()}
        return once("steering", what, effects, list[EditEffect], effect.__file__)

    sweeps = {
        f"{name}_{edit}": {
            seed: measure(models[folder.path.name], folder, edit, bench) for seed, folder in by_seed.items()
        }
        for name, by_seed in trained.items()
        for edit in EDITS
    }
    return sweeps | {"base_set": {0: measure(base, inputs["base"], "set", of_base)}}


def _predicted(work: Work, section: SteerParams, tokens: Tokens, concepts: Artifact, trained: Artifact) -> pa.Table:
    """A model's predictions of each concept; earlier measurements are reused, see `once`."""
    validation = tokens.windows("validation")
    windows = _drawn(len(validation), min(section.read_windows, len(validation)), section.seed)
    ids = torch.from_numpy(validation[windows].astype(np.int64))

    def read() -> list[ConceptPredictions]:
        unpacked = ConceptLabels(concepts).unpack(tokens, "validation", work.scratch / "labels.npy")
        of_windows = torch.from_numpy(unpacked[windows].astype(np.int64))
        task, kept = f"predicted {trained.path.name}", work.scratch / f"predicted-{trained.path.name}"
        model = load_base(trained, tokens.context)
        return measure_predictions(model, ids, of_windows, section.promoted, kept, task=task)

    key = {"model": trained.digest, "tokens": tokens.artifact.digest, "labels": concepts.digest}
    what = key | {"windows": windows.tolist(), "promoted": section.promoted}
    found = once("predicted", what, read, list[ConceptPredictions], measure.__file__)
    return predictions_table(trained.path.name, found, windows.tolist(), ids.tolist())


def _text(tokens: Tokens, section: SteerParams) -> torch.Tensor:
    """Validation windows, drawn at random: int64 [windows, context]."""
    validation = tokens.windows("validation")
    if section.windows > len(validation):
        raise UserError(
            f"steer.windows ({section.windows}) must not exceed the {len(validation)} validation windows of "
            f"{tokens.artifact.path}"
        )
    chosen = _drawn(len(validation), section.windows, section.seed)
    return torch.from_numpy(validation[chosen].astype(np.int64)).to(device())


def _drawn(count: int, some: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).choice(count, some, replace=False))


def _metrics(sweep: Sweep) -> dict[str, Any]:
    """The effects of the lowest and the highest strength; the report has those of all."""
    return {
        f"{each.strength:g}": {
            "success": each.success.own.mean,
            "success_control": each.success.control,
            "log_ratio": each.log_ratio.own._asdict(),
            "log_ratio_control": each.log_ratio.control,
            "read": each.read.own._asdict(),
            "loss": each.loss._asdict(),
            "distinct": each.distinct._asdict(),
        }
        for each in (sweep.effects[0], sweep.effects[-1])
    }


def _write_plot(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Write means of `log_ratio`: a row per strength, a column per sweep and one for its control."""
    columns = {"strength": [each.strength for each in sweeps[0].effects]} if sweeps else {"strength": []}
    for sweep in sweeps:
        columns[sweep.name] = [each.log_ratio.own.mean for each in sweep.effects]
        columns[f"{sweep.name}_control"] = [each.log_ratio.control for each in sweep.effects]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])


if __name__ == "__main__":
    main(run)

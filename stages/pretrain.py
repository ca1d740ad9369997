"""Stage `pretrain`: train one language model, by one method and seed: `python -m stages.pretrain METHOD SEED`."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.attribution.labels import ConceptLabels
from cocomix.base.loading import load_base
from cocomix.check.external import outside
from cocomix.corpus.splits import Split
from cocomix.distribution.draws import Draws
from cocomix.models.accounting import parameters
from cocomix.models.card import Trained, model_card
from cocomix.models.start import new_model
from cocomix.params import (
    CocomixParams,
    MethodParams,
    MtpParams,
    Params,
    distillation,
    reads_distribution,
    runs_base,
)
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.origins import check_origins
from cocomix.plumbing.runtime import runtime
from cocomix.shapes.methods import ListedMethod, read_method
from cocomix.tokens.window_data import WindowData, WindowLabels
from cocomix.tokens.windows import Tokens
from cocomix.training.distillation import Distillation
from cocomix.training.loop import Training, TrainingCurveRow, write_curve
from cocomix.training.objectives import ConceptMixing, HiddenMixing, MultiToken, Objective, Weighted
from stages.matrix import matrix_item
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params, method: str, seed: int) -> None:
    """Make artifacts/models/<method>-<seed>, a Hugging Face folder; the method is as artifacts/methods describes it."""
    name = f"{method}-{seed}"
    tokens = Tokens(ARTIFACTS / "tokens")
    methods = Artifact(ARTIFACTS / "methods")
    teacher = Teacher(*(Artifact(ARTIFACTS / each) for each in Teacher._fields))
    listed = read_method(methods, method)
    _check_origins(listed, tokens, teacher, methods)
    kind, own, training_params = listed.kind, listed.parameters, params.pretrain.training
    used = {
        "method": method,
        "seed": seed,
        "shape": listed.shape,
        "training": training_params.model_dump(),
        kind: own.model_dump(mode="json"),
    }
    init = params.pretrain.init
    if init.source == "pretrained":
        used["init"] = init.model_dump()

    def data(split: Split, scratch: Path) -> WindowData:
        labels, draws = None, None
        if isinstance(own, CocomixParams) and own.predicts == "concepts":
            labels = labels_of(own, ConceptLabels(teacher.concepts), tokens, split, scratch)
        if reads_distribution(own):
            draws = Draws(teacher.distribution).unpack(tokens, split, scratch / f"draws-{split}")
        return WindowData(tokens.windows(split), labels, draws)

    def compute(work: Work) -> dict[str, Any]:
        model = new_model(listed.shape, tokens.context, init, seed)
        work.confirm_inputs()
        objective = _objective(own, model, teacher, tokens.context)
        if isinstance(own, CocomixParams):
            objective.mixing_learning_rate = own.mixing_learning_rate
        train, validation = data("train", work.scratch), data("validation", work.scratch)
        training = Training(objective, train, validation, training_params, seed, work.scratch)
        curve = training.run(name)
        if runtime().rank == 0:
            with work.write_folder() as folder:
                last = curve[-1]
                trained = Trained(
                    name,
                    kind,
                    tokens.origin,
                    tokens.context,
                    last.tokens,
                    last.flops,
                    last.validation_loss,
                    init,
                    distilled=distillation(own) is not None,
                    shuffled=isinstance(own, CocomixParams) and own.labels == "shuffled",
                )
                write_model(folder, objective.model, tokens.tokenizer(), trained)
            write_curve(work.side / "curve.csv", curve)
            metrics = _metrics(method, seed, objective, curve) | training.usage._asdict()
            (work.side / "metrics.json").write_bytes(to_json(metrics))
        return {"method": method, "seed": seed}

    side = {
        "metrics.json": Path("metrics/pretrain") / f"{name}.json",
        "curve.csv": Path("plots/pretrain") / f"{name}.csv",
    }
    inputs: dict[str, Artifact | str] = {
        "tokens": tokens.artifact,
        f"supervision.{method}": listed.supervision,
        **outside("pretrain.init.path", params),
    }
    produce(f"pretrain@{name}", ARTIFACTS / "models" / name, inputs, used, compute, side)


class Teacher(NamedTuple):
    """The artifacts from which methods learn besides the tokens."""

    base: Artifact
    concepts: Artifact
    distribution: Artifact


def _check_origins(method: ListedMethod, tokens: Tokens, teacher: Teacher, methods: Artifact) -> None:
    """Check only the artifacts that a method learns from: new labels, for example, do not affect `ntp`."""
    opened = {"tokens": tokens.artifact, "methods": methods}
    if runs_base(method.parameters):
        opened["base"] = teacher.base
    if method.kind == "cocomix":
        opened["concepts"] = teacher.concepts
    if reads_distribution(method.parameters):
        opened["distribution"] = teacher.distribution
    check_origins(opened)


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, trained: Trained) -> None:
    """Write a Hugging Face folder, with a tokenizer that pads batches for generation."""
    model.save_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side, tokenizer.model_max_length = "left", trained.context
    tokenizer.init_kwargs["padding_side"] = "left"  # without it, the side is not saved
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(model, trained), encoding="utf-8")


def labels_of(
    section: CocomixParams, labels: ConceptLabels, tokens: Tokens, split: Split, scratch: Path
) -> WindowLabels:
    """The labels of a split, as a method learns them."""
    concepts = labels.unpack(tokens, split, scratch / f"labels-{split}.npy")
    scores, order = None, None
    if section.label_weights == "score":
        scores = labels.unpack(tokens, split, scratch / f"scores-{split}.npy", "scores")
    if section.labels == "shuffled":
        order = np.random.default_rng(0).permutation(len(concepts))
    return WindowLabels(concepts, scores, tuple(section.label_offsets), order)


def _objective(section: MethodParams, model: PreTrainedModel, teacher: Teacher, context: int) -> Objective:
    """A model with the training objective of a method."""

    @cache
    def base_model() -> PreTrainedModel:
        return load_base(teacher.base, context)

    taught = distillation(section)
    beside = Distillation(taught, base_model() if taught.source == "online" else None) if taught else None
    if isinstance(section, MtpParams):
        return MultiToken(model, section)
    if not isinstance(section, CocomixParams) or section.predicts == "nothing":
        return Objective(model, beside)
    weight = Weighted(section.concept_weight, section.concept_schedule)
    if section.predicts == "concepts":
        return ConceptMixing(model, weight, beside, section.teacher_forcing)
    layer = teacher.concepts.about["layer"]
    return HiddenMixing(model, base_model(), layer, section.hidden_loss, weight, beside)


def _metrics(method: str, seed: int, objective: Objective, curve: list[TrainingCurveRow]) -> dict[str, Any]:
    last = curve[-1]
    return {
        "method": method,
        "seed": seed,
        "d_model": objective.model.config.hidden_size,
        "n_head": objective.model.config.num_attention_heads,
        "parameters": parameters(objective.model)._asdict(),
        "tokens": last.tokens,
        "flops_per_token": round(last.flops / last.tokens),
        "flops": last.flops,
        "seconds": last.seconds,
        "tokens_per_second": round(last.tokens / last.seconds, 1),
        "train_loss": last.train_loss,
        "validation_loss": last.validation_loss,
    }


if __name__ == "__main__":
    main(lambda params: run(params, *matrix_item(sys.argv[1:], params)))

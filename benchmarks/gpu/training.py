"""Part `training`: steps of the training loop at the paper's smallest size, in the largest micro-batch that fits."""

import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks import on_gpu, reset_peak_memory
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, params_of, settings
from cocomix.attribution.labels import label_type
from cocomix.models.configs import config_of
from cocomix.params import CocomixParams, Params, TrainingParams
from cocomix.plumbing.device import peak_flops
from cocomix.shapes.models import TeacherSizes, shape_of, shapes
from cocomix.shapes.planning.corpus import Words, estimated_corpus
from cocomix.shapes.planning.needs import LIBRARIES
from cocomix.shapes.planning.stages import stage_needs
from cocomix.tokens.window_data import WindowData, WindowLabels
from cocomix.training.loop import Training, TrainingCurveRow
from cocomix.training.objectives import ConceptMixing, Objective, Weighted

METHODS = ("ntp", "cocomix")


def measurements(setting: Setting) -> dict[str, Measurement]:
    return {
        **{method: partial(train, setting, method) for method in METHODS},
        **{f"{method} synchronisations": partial(synchronisations, setting, method) for method in METHODS},
    }


def train(setting: Setting, method: str) -> dict[str, object]:
    """Train some steps.

    The rate and the utilisation (MFU) are those after the first quarter of the steps. Planned memory is that of
    `cocomix.shapes.planning` without the libraries'.
    """
    params = params_of(setting.sizes.student)
    micro_batch, run, rows = largest_micro_batch(setting, params, method)
    first, last = rows[0], rows[-1]
    seconds, peak = last.seconds - first.seconds, peak_flops()
    needs = stage_needs(params, estimated_corpus(params, None))[f"pretrain@{method}-0"]
    planned = needs.memory - LIBRARIES + micro_batch * needs.window_memory
    return {
        "micro_batch": micro_batch,
        "tokens_per_second": (last.tokens - first.tokens) / seconds,
        "mfu": peak and (last.flops - first.flops) / seconds / peak,
        "flops_per_token": last.flops / last.tokens,
        "seconds_of_first_quarter": first.seconds,
        "seconds_of_a_step": seconds / (last.step - first.step),
        "peak_memory": run.usage.peak_memory,
        "planned_memory": planned,
        "peak_over_planned": run.usage.peak_memory / planned,
        "train_loss": last.train_loss,
        "batch": setting.sizes.batch,
    }


def largest_micro_batch(setting: Setting, params: Params, method: str) -> tuple[int, Training, list[TrainingCurveRow]]:
    """The largest micro-batch that fits, of the batch and its halves; and the run with it, and its curve.

    The search begins with what was found before, in this part or another.
    """
    kept, steps = setting.folder / f"micro-batch-{method}", setting.sizes.steps
    micro_batch = int(kept.read_text()) if kept.exists() else setting.sizes.batch
    while True:
        reset_peak_memory()
        torch.compiler.reset()  # a second size would be compiled for all sizes
        try:
            with settings(micro_batch=micro_batch), tempfile.TemporaryDirectory(dir=setting.folder) as folder:
                run = training(params, objective_of(params, method), setting.sizes.batch, steps, Path(folder))
                rows = run.run(method)
            kept.write_text(str(micro_batch))
            return micro_batch, run, rows
        except torch.OutOfMemoryError:
            if micro_batch == 1:
                raise
            micro_batch //= 2


def objective_of(params: Params, method: str) -> Objective:
    """A new model with the objective of `ntp` or `cocomix`."""
    words = Words(estimated_corpus(params, None).vocab_size, params.tokenize.context)
    teacher = TeacherSizes(params.sae.concepts, params.base.model.d_model, base_flops=0, base_flops_to_layer=0)
    shape = shape_of(method, shapes(params.pretrain, words, teacher)[method])
    model, section = AutoModelForCausalLM.from_config(config_of(shape)), params.pretrain.listed[method]
    if not isinstance(section, CocomixParams):
        return Objective(model)
    return ConceptMixing(model, Weighted(section.concept_weight), teacher_forcing=section.teacher_forcing)


def training(params: Params, objective: Objective, batch: int, steps: int, folder: Path) -> Training:
    """A training run on random windows and labels."""
    config, generator = objective.model.config, np.random.default_rng(0)
    size = (4 * batch, config.n_positions)
    ids = generator.integers(0, config.vocab_size, size, np.uint16)
    labels = None
    if isinstance(objective, ConceptMixing):
        concepts, k_attr = config.num_concepts, params.attribution.k_attr
        labels = WindowLabels(generator.integers(0, concepts, (*size, k_attr), label_type(concepts)))
    data = WindowData(ids, labels)
    changes = {"steps": steps, "batch_size": batch, "eval_every": max(1, steps // 4), "checkpoint_every": steps}
    few = TrainingParams.model_validate(params.pretrain.training.model_dump() | changes | {"eval_windows": 1})
    return Training(objective, data, data, few, 0, folder)


def synchronisations(setting: Setting, method: str) -> dict[str, float]:
    """How often a training step of one micro-batch waits for the GPU, by the line of code that does."""
    if not on_gpu():
        return {}
    params, windows, steps = params_of(setting.sizes.student), 4, 4
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        run = training(params, objective_of(params, method), windows, steps, Path(folder))
        step, found = run._train_step, Counter[str]()

        def watched() -> tuple[float, float]:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = step()
            torch.cuda.set_sync_debug_mode("default")
            found.update(f"{each.filename}:{each.lineno}" for each in caught if "synchron" in str(each.message))
            return result

        run._train_step = watched  # type: ignore[method-assign]
        run.run(method)
    return {where: count / steps for where, count in found.most_common(20)}

"""The training step of the 69M model (paper section 3), against the formulation of the released code.

with_labels       text tokens per second of our step with given labels, divided by those of the as-published step, which
                  computes labels in every step with a base model of GPT-2 124M's shape (layer 6, 32768 latents)
student_only      the same with labels given to the as-published step
peak_memory       peak of our step divided by that of the as-published step with its base model, each in its own
                  process; on a CPU, beyond the memory of the imports
peak_memory_student_only  the same with labels given to the as-published step
over_flop_ratio   time of our CoCoMix step divided by that of our NTP step of the same width and depth, divided by the
                  ratio of their floating-point operations

A step is forward, backward, clipping, fused AdamW. All weights, tokens and labels are random. Students multiply in bf16
if the hardware does (`cocomix.plumbing.device.bf16`), the as-published base model in fp32 (on a GPU TF32), as released.
Both sides have the same attention kernels, the same threads, and no dropout. `as_published` describes the as-published
computation. The released code compiles its models by default: `COCOMIX_COMPILE=true` compiles both sides.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import measured, medians, on_gpu, own_peak, peak, report, set_up
from benchmarks.as_published import PublishedStudent, PublishedTeacher, student_loss
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.models.accounting import flops_per_token
from cocomix.params import TrainingParams
from cocomix.plumbing.device import attention, autocast, device, tf32
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.tokens.window_data import Batch
from cocomix.training.objectives import ConceptMixing, Objective, Weighted
from cocomix.training.optimizers import adamw
from cocomix.training.whole_windows import whole_windows

CONCEPT_WEIGHT = 0.1
PARAMS = TrainingParams(steps=1, batch_size=1, learning_rate=6e-4, eval_every=1, eval_windows=1, checkpoint_every=1)

Step = Callable[[], None]


class Blocks(NamedTuple):
    """Size of a GPT-2's blocks."""

    d_model: int
    n_layer: int
    n_head: int


class Shape(NamedTuple):
    """Sizes of the students and of the base model that labels; by default the paper's."""

    student: Blocks = Blocks(512, 8, 8)
    teacher: Blocks = Blocks(768, 12, 12)
    concept_layer: int = 3
    vocab: int = 50257
    latents: int = 32768
    k: int = 32
    k_attr: int = 4
    context: int = 1024
    windows: int = 8
    """Windows of a step."""

    def gpt2(self, blocks: Blocks) -> dict[str, object]:
        """Keyword arguments of a configuration."""
        return {
            "n_embd": blocks.d_model,
            "n_layer": blocks.n_layer,
            "n_head": blocks.n_head,
            "n_positions": self.context,
            "vocab_size": self.vocab,
            "activation_function": "gelu_pytorch_tanh",
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "attn_implementation": attention(self.context),
        }

    def ntp(self) -> GPT2Config:
        return GPT2Config(**self.gpt2(self.student))

    def cocomix(self) -> CoCoMixConfig:
        own = {"num_concepts": self.latents, "concept_k": self.k, "concept_layer": self.concept_layer}
        return CoCoMixConfig(**self.gpt2(self.student), **own)

    def data(self) -> Batch:
        """Random windows and labels."""
        ids = torch.randint(self.vocab, (self.windows, self.context), device=device())
        labels = torch.randint(self.latents, (self.windows, self.context, self.k_attr), device=device())
        return Batch(windows=ids, labels=labels)


def cocomix_model(shape: Shape) -> CoCoMixForCausalLM:
    return CoCoMixForCausalLM(shape.cocomix()).to(device())


def as_run(module: nn.Module) -> nn.Module:
    """The module as it is called: compiled if `runtime().compile` is set."""
    return torch.compile(module) if runtime().compile else module  # type: ignore[return-value]


def our_step(objective: Objective, batch: Batch) -> Step:
    """The step of `cocomix.training.Training` with one micro-batch."""
    optimizer = adamw(objective.train(), PARAMS)
    tokens, positions = batch["windows"][:, 1:].numel(), objective.positions(batch["windows"], batch.get("labels"))
    run = as_run(objective)

    def step() -> None:
        with whole_windows(objective.model), autocast():
            losses = run(**batch)
        total: torch.Tensor = losses.tokens / tokens
        for name, loss in losses.auxiliary.items():
            total = total + objective.weights[name].weight * loss / positions[name]
        total.backward()  # type: ignore[no-untyped-call]
        _update(objective, optimizer)

    return step


def ntp(shape: Shape) -> Step:
    model = GPT2LMHeadModel(shape.ntp()).to(device())
    return our_step(Objective(model), Batch(windows=shape.data()["windows"]))


def ours(shape: Shape) -> Step:
    return our_step(ConceptMixing(cocomix_model(shape), Weighted(CONCEPT_WEIGHT)), shape.data())


def published_student(shape: Shape) -> Step:
    """The as-published step with given labels."""
    batch, step = shape.data(), _published_step(shape)
    return lambda: step(batch["windows"], batch["labels"])


def published(shape: Shape) -> Step:
    """The as-published step including its labels."""
    student_step, layer = _published_step(shape), shape.teacher.n_layer // 2
    base = GPT2LMHeadModel(GPT2Config(**shape.gpt2(shape.teacher) | {"activation_function": "gelu_new"}))
    sae = SparseAutoencoder(
        SaeConfig(d_model=shape.teacher.d_model, latents=shape.latents, k=shape.k, normalize="token", layer=layer)
    )
    for weight in (sae.encoder, sae.decoder):
        nn.init.normal_(weight)
    teacher = as_run(PublishedTeacher(base, sae, layer, shape.k_attr).to(device()))
    ids = shape.data()["windows"]

    def step() -> None:
        labels, _attribution = teacher(ids)  # kept until the step ends, as released
        student_step(ids, labels)

    return step


def _published_step(shape: Shape) -> Callable[[torch.Tensor, torch.Tensor], None]:
    student = PublishedStudent.of(cocomix_model(shape)).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=6e-4, betas=PARAMS.betas, weight_decay=0.1, fused=True)
    run = as_run(student)

    def step(ids: torch.Tensor, labels: torch.Tensor) -> None:
        with autocast():
            loss = student_loss(run(ids), ids, labels, CONCEPT_WEIGHT)
        loss.backward()  # type: ignore[no-untyped-call]
        _update(student, optimizer)

    return step


def _update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), PARAMS.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


STEPS: dict[str, Callable[[Shape], Step]] = {
    "ours": ours,
    "published": published,
    "published_student": published_student,
    "ntp": ntp,
}


def times(shape: Shape, repeats: int) -> dict[str, float]:
    """The ratios of time, from CPU seconds, or on a GPU from wall-clock seconds."""
    with tf32():
        taken = measured(medians({name: make(shape) for name, make in STEPS.items()}, repeats))
    flops = [flops_per_token(config, shape.context) for config in (shape.cocomix(), shape.ntp())]
    return {
        "with_labels": taken["published"] / taken["ours"],
        "student_only": taken["published_student"] / taken["ours"],
        "over_flop_ratio": taken["ours"] / taken["ntp"] / (flops[0] / flops[1]),
    }


def two_steps(shape: Shape, name: str) -> None:
    """The workload of the memory measurement."""
    step = STEPS[name](shape)
    for _ in range(2):
        step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=STEPS)
    arguments, rest = parser.parse_known_args()
    torch.manual_seed(0)
    shape = Shape() if on_gpu() else Shape(context=256, windows=4 if arguments.peak else 2)
    if arguments.peak:
        torch.set_num_threads(1)
        with tf32():
            print(own_peak(lambda: two_steps(shape, arguments.peak)))
        sys.exit()
    sys.argv[1:] = rest
    set_up()
    memory = {name: peak("student_step", name) for name in ("ours", "published", "published_student")}
    report(
        "student_step",
        times(shape, arguments.repeats)
        | {
            "peak_memory": memory["ours"] / memory["published"],
            "peak_memory_student_only": memory["ours"] / memory["published_student"],
        },
    )

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

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import medians, own_peak, peak, report, set_up
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

ON_GPU = device().type == "cuda"
CONTEXT, WINDOWS = (1024, 8) if ON_GPU else (256, 2)
MEMORY_WINDOWS = 8 if ON_GPU else 4
VOCAB, LATENTS, K, K_ATTR = 50257, 32768, 32, 4
CONCEPT_WEIGHT = 0.1
PARAMS = TrainingParams(steps=1, batch_size=1, learning_rate=6e-4, eval_every=1, eval_windows=1, checkpoint_every=1)

Step = Callable[[], None]


def gpt2(d_model: int, n_layer: int, n_head: int) -> dict[str, object]:
    return {
        "n_embd": d_model,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_positions": CONTEXT,
        "vocab_size": VOCAB,
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


STUDENT = gpt2(512, 8, 8)
COCOMIX = STUDENT | {"num_concepts": LATENTS, "concept_k": K, "concept_layer": 3}
TEACHER = gpt2(768, 12, 12) | {"activation_function": "gelu_new"}


def cocomix_model() -> CoCoMixForCausalLM:
    return CoCoMixForCausalLM(CoCoMixConfig(**COCOMIX, attn_implementation=attention(CONTEXT))).to(device())


def data(windows: int) -> Batch:
    ids = torch.randint(VOCAB, (windows, CONTEXT), device=device())
    return Batch(windows=ids, labels=torch.randint(LATENTS, (windows, CONTEXT, K_ATTR), device=device()))


def as_run(module: nn.Module) -> nn.Module:
    """The module as it is called: compiled if `runtime().compile` is set."""
    return torch.compile(module) if runtime().compile else module  # type: ignore[return-value]


def our_step(objective: Objective, batch: Batch) -> Step:
    """The step of `cocomix.training.Training` with one micro-batch."""
    optimizer = adamw(objective.train().parameters(), PARAMS)
    tokens, positions = batch["windows"][:, 1:].numel(), objective.positions(batch["windows"], batch.get("labels"))
    run = as_run(objective)

    def step() -> None:
        with autocast():
            losses = run(**batch)
        total: torch.Tensor = losses.tokens / tokens
        for name, loss in losses.auxiliary.items():
            total = total + objective.weights[name].weight * loss / positions[name]
        total.backward()  # type: ignore[no-untyped-call]
        _update(objective, optimizer)

    return step


def ntp(windows: int) -> Step:
    config = GPT2Config(**STUDENT, attn_implementation=attention(CONTEXT))
    return our_step(Objective(GPT2LMHeadModel(config).to(device())), Batch(windows=data(windows)["windows"]))


def ours(windows: int) -> Step:
    return our_step(ConceptMixing(cocomix_model(), Weighted(CONCEPT_WEIGHT)), data(windows))


def published_student(windows: int) -> Step:
    """The as-published step with given labels."""
    batch, step = data(windows), _published_step()
    return lambda: step(batch["windows"], batch["labels"])


def published(windows: int) -> Step:
    """The as-published step including its labels."""
    student_step = _published_step()
    base = GPT2LMHeadModel(GPT2Config(**TEACHER, attn_implementation=attention(CONTEXT)))
    sae = SparseAutoencoder(SaeConfig(d_model=768, latents=LATENTS, k=K, normalize="token", layer=6))
    for weight in (sae.encoder, sae.decoder):
        nn.init.normal_(weight)
    teacher = as_run(PublishedTeacher(base, sae, layer=6, k_attr=K_ATTR).to(device()))
    ids = data(windows)["windows"]

    def step() -> None:
        labels, _attribution = teacher(ids)  # kept until the step ends, as released
        student_step(ids, labels)

    return step


def _published_step() -> Callable[[torch.Tensor, torch.Tensor], None]:
    student = PublishedStudent.of(cocomix_model()).train()
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
    if ON_GPU:
        torch.cuda.synchronize()


STEPS: dict[str, Callable[[int], Step]] = {
    "ours": ours,
    "published": published,
    "published_student": published_student,
    "ntp": ntp,
}


def times(repeats: int) -> dict[str, float]:
    """The ratios of time, from CPU seconds, or on a GPU from wall-clock seconds."""
    with tf32():
        seconds = medians({name: make(WINDOWS) for name, make in STEPS.items()}, repeats)
    taken = {name: each.wall if ON_GPU else each.cpu for name, each in seconds.items()}
    flops = [flops_per_token(config, CONTEXT) for config in (CoCoMixConfig(**COCOMIX), GPT2Config(**STUDENT))]
    return {
        "with_labels": taken["published"] / taken["ours"],
        "student_only": taken["published_student"] / taken["ours"],
        "over_flop_ratio": taken["ours"] / taken["ntp"] / (flops[0] / flops[1]),
    }


def two_steps(name: str) -> None:
    """The workload of the memory measurement."""
    step = STEPS[name](MEMORY_WINDOWS)
    for _ in range(2):
        step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=STEPS)
    arguments, rest = parser.parse_known_args()
    torch.manual_seed(0)
    if arguments.peak:
        torch.set_num_threads(1)
        with tf32():
            print(own_peak(lambda: two_steps(arguments.peak)))
        sys.exit()
    sys.argv[1:] = rest
    set_up()
    memory = {name: peak("student_step", name) for name in ("ours", "published", "published_student")}
    report(
        "student_step",
        times(arguments.repeats)
        | {
            "peak_memory": memory["ours"] / memory["published"],
            "peak_memory_student_only": memory["ours"] / memory["published_student"],
        },
    )

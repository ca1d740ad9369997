"""Part `evaluation`: losses of held-out text in fp32, with and without TF32, and by the number of windows at once."""

from functools import partial

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from benchmarks import measured, medians
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.published import shape
from benchmarks.gpu.setting import Setting
from benchmarks.student_step import Shape, cocomix_model
from cocomix.evaluation.language_model import token_losses, windows_at_once
from cocomix.plumbing.device import device, tf32

BATCH = 32
"""Windows of a forward pass at most, as `evaluate.batch_size`."""


def measurements(setting: Setting) -> dict[str, Measurement]:
    small, repeats = shape(setting.sizes), setting.sizes.repeats
    return {method: partial(evaluate, small, method, repeats) for method in ("ntp", "cocomix")}


def evaluate(small: Shape, method: str, repeats: int) -> dict[str, float]:
    """Tokens a second in fp32, with TF32 as a multiple, and with two windows at once; the difference of the losses."""
    model: PreTrainedModel = GPT2LMHeadModel(small.ntp()).to(device()) if method == "ntp" else cocomix_model(small)
    model.eval()
    at_once = windows_at_once(BATCH, small.context, model.config)
    ids = torch.randint(small.vocab, (at_once, small.context), device=device())
    losses: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def score(name: str, windows: int) -> None:
        losses[name] = torch.cat([token_losses(model, some) for some in torch.split(ids, windows)])

    def with_tf32() -> None:
        with tf32():
            score("tf32", at_once)

    works: dict[str, Measurement] = {
        "fp32": partial(score, "fp32", at_once),
        "tf32": with_tf32,
        "two windows": partial(score, "two", 2),
    }
    seconds = measured(medians(works, repeats))
    return {
        "windows_at_once": at_once,
        "tokens_per_second": ids.numel() / seconds["fp32"],
        "tf32_speedup": seconds["fp32"] / seconds["tf32"],
        "over_two_windows": seconds["two windows"] / seconds["fp32"],
        "tf32_mean_difference": float((losses["tf32"] - losses["fp32"]).mean().abs()),
        "tf32_largest_difference": float((losses["tf32"] - losses["fp32"]).abs().max()),
    }

"""The training step with distillation from cached draws, against next-token prediction and a base model in each step.

cached_over_ntp     time of the step that reads 50 draws of each position, divided by that of next-token prediction
cached_over_ntp_12  the same where 12 of the 50 draws differ, as with the language models of arXiv 2503.16870; otherwise
                    33, as with the base model of the default run
online_over_cached  time of the step with the base model in it, divided by that of the step that reads draws
online_over_cached_larger  the same with the base model of the preset `larger-base`

A step is reading the batch, forward, backward, clipping, fused AdamW, at the size of the default run: 16 windows of 128
tokens, a student of 4 blocks with d 208, a base model of 4 blocks with d 128. All weights, tokens and draws are random.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import medians, report, set_up
from cocomix.base.loading import prepared
from cocomix.distribution.draws import PackedDraws, WindowDraws
from cocomix.params import KdParams, TrainingParams
from cocomix.plumbing.device import attention, autocast, device, send
from cocomix.tokens.window_data import Drawn, WindowData
from cocomix.training.distillation import Distillation
from cocomix.training.objectives import Objective
from cocomix.training.optimizers import adamw

CONTEXT, BATCH, WINDOWS, VOCAB, DRAWS = 128, 16, 512, 4096, 50
PARAMS = TrainingParams(steps=1, batch_size=BATCH, learning_rate=2e-3, eval_every=1, eval_windows=1, checkpoint_every=1)


def gpt2(d_model: int, n_head: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        n_embd=d_model,
        n_layer=4,
        n_head=n_head,
        n_positions=CONTEXT,
        vocab_size=VOCAB,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation=attention(CONTEXT),
    )
    return GPT2LMHeadModel(config).to(device())


def draws(different: int) -> WindowDraws:
    """Draws of which so many differ at each position."""
    generator = np.random.default_rng(0)
    shape = (WINDOWS, CONTEXT)
    unique = np.full(shape, different, np.uint8)
    unique[:, -1] = 0
    positions = int((unique > 0).sum())
    ids = np.sort(generator.integers(0, VOCAB, (positions, different), np.uint16), axis=-1).ravel()
    counts = 1 + generator.multinomial(DRAWS - different, np.full(different, 1 / different), positions)
    starts = np.concatenate([[0], np.cumsum(unique.sum(1, dtype=np.int64))])
    entropies = np.full(shape, 5, np.float16)
    return WindowDraws(PackedDraws(unique, ids, counts.astype(np.uint8).ravel(), entropies), starts, DRAWS)


def step(distillation: Distillation | None, read: WindowDraws | None = None) -> Callable[[], None]:
    objective = Objective(gpt2(208, 13), distillation).train()
    optimizer = adamw(objective, PARAMS)
    windows = np.random.default_rng(1).integers(0, VOCAB, (WINDOWS, CONTEXT), np.uint16)
    data, order = WindowData(windows, draws=read), np.random.default_rng(2)
    kl_weight = torch.ones((), device=device()) if distillation else None

    def run() -> None:
        batch = data.batch(order.integers(0, WINDOWS, BATCH))
        drawn = Drawn(*map(send, batch["drawn"])) if "drawn" in batch else None
        with autocast():
            losses = objective(send(batch["windows"]), drawn, kl_weight)
        (losses.tokens / (BATCH * (CONTEXT - 1))).backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device().type == "cuda":
            torch.cuda.synchronize()

    return run


def times(repeats: int) -> dict[str, float]:
    cached = Distillation(KdParams(source="cached", kl_weight=1.0))
    online, larger = (Distillation(KdParams(kl_weight=1.0), prepared(gpt2(*size))) for size in ((128, 4), (256, 8)))
    steps = {
        "ntp": step(None),
        "cached": step(cached, draws(33)),
        "cached_12": step(cached, draws(12)),
        "online": step(online),
        "online_larger": step(larger),
    }
    on_gpu = device().type == "cuda"
    seconds = {name: each.wall if on_gpu else each.cpu for name, each in medians(steps, repeats).items()}
    return {
        "cached_over_ntp": seconds["cached"] / seconds["ntp"],
        "cached_over_ntp_12": seconds["cached_12"] / seconds["ntp"],
        "online_over_cached": seconds["online"] / seconds["cached"],
        "online_over_cached_larger": seconds["online_larger"] / seconds["cached"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=30)
    arguments, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    torch.manual_seed(0)
    set_up()
    report("distillation", times(arguments.repeats))

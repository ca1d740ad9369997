"""Attribution: the cost of labels, compared with the released code's formulation and the base model's forward pass.

rate                           tokens per second of our labels divided by the as-published ones': GPT-2 124M, layer 6,
                               32768 latents, 32 of them active; windows of 256 tokens
peak_memory                    our peak divided by the as-published one, each labelling 2048 tokens in one pass, in its
                               own process; on a CPU, beyond the memory of the imports
next_token_over_sequence       time of labels by the next token's loss alone divided by that of labels by the window's
                               loss, at the shape of `rate`; `_default`: 4 blocks of width 128, 1024 latents
attribution_over_forward       time of labels divided by that of a forward pass, at the default's shape
attribution_over_forward_gpt2  the same at the shape of `rate`

All weights are random. The as-published base model multiplies in fp32, as released; ours in bf16 if the hardware does
(`cocomix.plumbing.device.bf16`). `as_published` describes the as-published computation.
"""

import argparse
import sys
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import measured, medians, own_peak, peak, report, set_up
from benchmarks.as_published import PublishedTeacher
from cocomix.attribution.labelling import label_windows
from cocomix.base.loading import prepared
from cocomix.params import AttributionParams
from cocomix.plumbing.device import attention, autocast, device
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder

PARAMS = AttributionParams(k_attr=4, score="gradient", sign="released", shard_tokens=1)
NEXT_TOKEN = PARAMS.model_copy(update={"scope": "next_token"})


class Shape(NamedTuple):
    """Shape of a base model, an autoencoder in its middle, and a batch."""

    d_model: int
    n_layer: int
    n_head: int
    vocab: int
    context: int
    windows: int
    latents: int

    def base(self) -> GPT2LMHeadModel:
        config = GPT2Config(
            n_embd=self.d_model,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_positions=self.context,
            vocab_size=self.vocab,
            attn_implementation=attention(self.context),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)

    def sae(self) -> SparseAutoencoder:
        config = SaeConfig(d_model=self.d_model, latents=self.latents, k=32, normalize="token", layer=self.n_layer // 2)
        sae = SparseAutoencoder(config)
        for weight in (sae.encoder, sae.decoder):
            torch.nn.init.normal_(weight)
        return sae

    def ids(self) -> Tensor:
        return torch.randint(0, self.vocab, (self.windows, self.context), device=device())


DEFAULT = Shape(d_model=128, n_layer=4, n_head=4, vocab=4096, context=128, windows=16, latents=1024)
GPT2 = Shape(d_model=768, n_layer=12, n_head=12, vocab=50257, context=256, windows=2, latents=32768)


def times(shape: Shape, repeats: int, *, published: bool) -> dict[str, float]:
    """Seconds of each alternative: CPU seconds, on a GPU wall-clock seconds."""
    ids, sae = shape.ids(), shape.sae().to(device())
    model = prepared(shape.base())

    def forward() -> None:
        with torch.inference_mode(), autocast():
            model(input_ids=ids, use_cache=False)

    frozen = shape.sae().requires_grad_(False).to(device())
    works = {
        "label": lambda: label_windows(model, frozen, ids, PARAMS),
        "next_token": lambda: label_windows(model, frozen, ids, NEXT_TOKEN),
        "forward": forward,
    }
    if published:
        teacher = PublishedTeacher(shape.base().to(device()), sae, sae.config.layer, PARAMS.k_attr)
        works["published"] = lambda: teacher(ids)
    return measured(medians(works, repeats))


def one_pass(way: str) -> None:
    """The workload of the memory measurement: labelling 2048 tokens."""
    shape = GPT2._replace(windows=8)
    if way == "ours":
        model, sae = prepared(shape.base()), shape.sae().requires_grad_(False).to(device())
        label_windows(model, sae, shape.ids(), PARAMS)
    else:
        PublishedTeacher(shape.base(), shape.sae(), shape.n_layer // 2, PARAMS.k_attr).to(device())(shape.ids())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peak", choices=["ours", "published"])
    arguments, rest = parser.parse_known_args()
    torch.manual_seed(0)
    set_up()
    if arguments.peak:
        print(own_peak(lambda: one_pass(arguments.peak)))
        sys.exit()
    sys.argv[1:] = rest
    memory = {way: peak("attribution", way) for way in ("ours", "published")}
    default, gpt2 = times(DEFAULT, 21, published=False), times(GPT2, 3, published=True)
    report(
        "attribution",
        {
            "rate": gpt2["published"] / gpt2["label"],
            "peak_memory": memory["ours"] / memory["published"],
            "next_token_over_sequence": gpt2["next_token"] / gpt2["label"],
            "next_token_over_sequence_default": default["next_token"] / default["label"],
            "attribution_over_forward": default["label"] / default["forward"],
            "attribution_over_forward_gpt2": gpt2["label"] / gpt2["forward"],
        },
    )

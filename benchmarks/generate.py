"""Decoding with a cache: CoCoMix against a plain GPT-2 of the same width and depth, one window, greedy.

over_block_ratio      CoCoMix's time per token divided by GPT-2's after the short prompt, divided by the ratio of the
                      positions that their blocks compute: (concept_layer + 2 x rest) / layers
flatness              time per token after the long prompt divided by its expected value: the time after the short
                      prompt plus the growth due to attention, which is GPT-2's own times the ratio of the attention's
                      operations
long_over_short       CoCoMix's time per token after the long prompt divided by that after the short one
long_over_short_gpt2  the same for GPT-2

The default shape is the 69M model's (paper section 3). All weights are random. The measured work is `generate` from a
cache that holds the prompt; processing the prompt is not measured.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from benchmarks import medians, report, set_up
from cocomix.modeling import CoCoMixCache, CoCoMixConfig, CoCoMixForCausalLM
from cocomix.plumbing.device import device


class Shape(NamedTuple):
    """Shape of the models; the default is the 69M model's."""

    d_model: int = 512
    layers: int = 8
    heads: int = 8
    concept_layer: int = 3
    vocab: int = 50257
    latents: int = 32768
    short: int = 32
    """Number of tokens of the short prompt."""
    long: int = 992
    new_tokens: int = 16
    """Number of tokens decoded per measurement."""

    @property
    def gpt2(self) -> dict[str, Any]:
        """Keyword arguments of both models' configurations."""
        return {
            "vocab_size": self.vocab,
            "n_positions": self.long + self.new_tokens,
            "n_embd": self.d_model,
            "n_layer": self.layers,
            "n_head": self.heads,
            "activation_function": "gelu_pytorch_tanh",
            "bos_token_id": 0,
            "eos_token_id": 0,
            "attn_implementation": "sdpa",
        }


def decoding(model: PreTrainedModel, prompt: int, new_tokens: int) -> Callable[[], torch.Tensor]:
    """A function that decodes `new_tokens` tokens after a random cached prompt: ids [1, prompt + new_tokens]."""
    ours = isinstance(model.config, CoCoMixConfig)
    cache = CoCoMixCache(model.config) if ours else DynamicCache(config=model.config)
    ids = torch.randint(model.config.vocab_size, (1, prompt), device=model.device)
    with torch.inference_mode():
        model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def decode() -> torch.Tensor:
        output: torch.Tensor = model.generate(ids, past_key_values=cache, **options)
        cache.crop(-new_tokens)
        return output

    return decode


def ratios(shape: Shape, repeats: int) -> dict[str, float]:
    """All ratios at one shape."""
    torch.manual_seed(0)
    cocomix = CoCoMixConfig(**shape.gpt2, concept_layer=shape.concept_layer, num_concepts=shape.latents)
    models = {
        "cocomix": CoCoMixForCausalLM(cocomix).eval().to(device()),
        "gpt2": GPT2LMHeadModel(GPT2Config(**shape.gpt2)).eval().to(device()),
    }
    works = {
        f"{name} {length}": decoding(model, getattr(shape, length), shape.new_tokens)
        for name, model in models.items()
        for length in ("short", "long")
    }
    taken = medians(works, repeats)
    seconds = {name: each.wall if device().type == "cuda" else each.cpu for name, each in taken.items()}
    below, above = shape.concept_layer, shape.layers - shape.concept_layer
    positions = (below + 2 * above) / shape.layers
    attention = (below + 4 * (above - 1) + 2) / shape.layers  # the last block computes queries for every other position
    growth = attention * (seconds["gpt2 long"] - seconds["gpt2 short"])
    return {
        "over_block_ratio": seconds["cocomix short"] / seconds["gpt2 short"] / positions,
        "flatness": seconds["cocomix long"] / (seconds["cocomix short"] + growth),
        "long_over_short": seconds["cocomix long"] / seconds["cocomix short"],
        "long_over_short_gpt2": seconds["gpt2 long"] / seconds["gpt2 short"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=9)
    for name, default in Shape()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    arguments, sys.argv[1:] = parser.parse_known_args()
    set_up()
    chosen = vars(arguments)
    report("generate", ratios(repeats=chosen.pop("repeats"), shape=Shape(**chosen)))

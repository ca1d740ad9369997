"""Attribution: what labelling tokens costs, as a multiple of the base model's forward pass over them.

attribution_over_forward        at the default's shape: 4 blocks of width 128, 1024 latents
attribution_over_forward_gpt2   at the paper's: GPT-2 124M, layer 6, 32768 latents; windows of 256 tokens
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import medians, report, set_up
from cocomix.attribution.labelling import label_windows
from cocomix.base import prepared
from cocomix.device import attention, autocast
from cocomix.params import AttributionParams
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder

PARAMS = AttributionParams(k_attr=4, score="gradient", sign="released", shard_windows=1)


def attribution_over_forward(
    *, d_model: int, n_layer: int, n_head: int, vocab: int, context: int, windows: int, latents: int, repeats: int
) -> float:
    """The ratio at one shape, with the autoencoder in the middle of the model."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=d_model,
        n_layer=n_layer,
        n_head=n_head,
        n_positions=context,
        vocab_size=vocab,
        attn_implementation=attention(context),
    )
    model = prepared(GPT2LMHeadModel(config))
    sae = SparseAutoencoder(SaeConfig(d_model=d_model, latents=latents, k=32, normalize="token", layer=n_layer // 2))
    for weight in (sae.encoder, sae.decoder):
        torch.nn.init.normal_(weight)
    sae.requires_grad_(False)
    ids = torch.randint(0, vocab, (windows, context))

    def forward() -> None:
        with torch.inference_mode(), autocast():
            model(input_ids=ids, use_cache=False)

    seconds = medians({"label": lambda: label_windows(model, sae, ids, PARAMS), "forward": forward}, repeats)
    return seconds["label"].cpu / seconds["forward"].cpu


if __name__ == "__main__":
    set_up()
    report(
        "attribution",
        {
            "attribution_over_forward": attribution_over_forward(
                d_model=128, n_layer=4, n_head=4, vocab=4096, context=128, windows=16, latents=1024, repeats=41
            ),
            "attribution_over_forward_gpt2": attribution_over_forward(
                d_model=768, n_layer=12, n_head=12, vocab=50257, context=256, windows=4, latents=32768, repeats=5
            ),
        },
    )

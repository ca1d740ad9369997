"""Part `labels`: the cost of labels and activations against the base model's forward pass; whether they are right."""

from functools import partial

import torch

from benchmarks import attribution, measured, medians
from benchmarks.as_published import PublishedTeacher
from benchmarks.attribution import PARAMS, Shape
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, Sizes, settings
from cocomix.attribution.labelling import label_windows, score_latents
from cocomix.base.hooks import residual_at
from cocomix.base.loading import prepared
from cocomix.params import AttributionParams
from cocomix.plumbing.device import autocast, device


def measurements(setting: Setting) -> dict[str, Measurement]:
    sizes = setting.sizes
    large = shape(sizes, sizes.label_windows)
    small = shape(sizes, 1)
    scores = {
        f"{score}, {scope} against the CPU": partial(
            against_cpu, small, PARAMS.model_copy(update={"score": score, "scope": scope})
        )
        for score, scope in [
            ("gradient", "sequence"),
            ("gradient", "next_token"),
            ("activation", "sequence"),
            ("integrated", "next_token"),
        ]
    }
    return {
        "over forward": partial(over_forward, large, sizes.repeats),
        "activations": partial(activations, large, sizes.repeats),
        "against as published": partial(against_published, small),
        **scores,
    }


def shape(sizes: Sizes, windows: int) -> Shape:
    """Of the base model, with the autoencoder in its middle."""
    width, layers, heads = sizes.teacher_blocks
    return Shape(width, layers, heads, sizes.vocab, sizes.context, windows, sizes.latents)


def over_forward(large: Shape, repeats: int) -> dict[str, float]:
    """The time of labels over a forward pass's, and of the as-published ones over ours; labelled tokens a second."""
    seconds = attribution.times(large, repeats, published=True)
    return {
        "over_forward": seconds["label"] / seconds["forward"],
        "next_token_over_forward": seconds["next_token"] / seconds["forward"],
        "rate_over_published": seconds["published"] / seconds["label"],
        "tokens_per_second": large.windows * large.context / seconds["label"],
    }


def activations(large: Shape, repeats: int) -> dict[str, float]:
    """Activations in the middle, to the CPU in fp16: tokens a second, and their time over a whole forward pass's."""
    model, ids = prepared(large.base()), large.ids()

    def activate() -> None:
        with torch.inference_mode(), autocast():
            residual_at(model, ids, large.n_layer // 2).half().cpu()

    def forward() -> None:
        with torch.inference_mode(), autocast():
            model(input_ids=ids, use_cache=False)

    seconds = measured(medians({"activations": activate, "forward": forward}, repeats))
    return {
        "tokens_per_second": ids.numel() / seconds["activations"],
        "over_forward": seconds["activations"] / seconds["forward"],
    }


def against_published(small: Shape) -> dict[str, float]:
    """The share of labels that are the as-published ones, in fp32."""
    torch.manual_seed(0)
    base, sae, ids = small.base(), small.sae(), small.ids()
    with settings(precision="fp32"):
        teacher = PublishedTeacher(base.to(device()), sae.to(device()), sae.config.layer, PARAMS.k_attr)
        published, _scores = teacher(ids)
        labels = label_windows(prepared(base), sae.requires_grad_(False), ids, PARAMS)
    ours = torch.from_numpy(labels.concepts.astype(int))
    labelled = ours < small.latents
    same = (ours == published.cpu())[labelled].float().mean()
    return {"labelled": float(labelled.float().mean()), "same": float(same)}


def against_cpu(small: Shape, params: AttributionParams) -> dict[str, float]:
    """The largest difference between the scores of the device and of the CPU, relative to the largest score, in fp32.

    Scores are those of all latents, [positions, latents]; a latent that only one of the two selects is in `apart`.
    """
    torch.manual_seed(0)
    base, sae, ids = small.base(), small.sae(), small.ids()
    dense = []
    for where in (device(), torch.device("cpu")):
        with settings(precision="fp32", device=where):
            model = prepared(base).to(where)
            latents, scores = score_latents(model, sae.requires_grad_(False).to(where), ids.to(where), params)
        blank = torch.zeros(len(scores), small.latents)
        dense.append(blank.scatter(1, latents.indices.cpu(), scores.detach().float().cpu()))
    both = (dense[0] != 0) & (dense[1] != 0)
    either = (dense[0] != 0) | (dense[1] != 0)
    gap = (dense[0] - dense[1]).abs()
    return {
        "difference": float(gap[both].max() / dense[1].abs().max()),
        "apart": 1 - float(both.sum() / either.sum()),
    }

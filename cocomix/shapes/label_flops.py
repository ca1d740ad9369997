"""FLOPs per token of CoCoMix's supervision: matrix products, two operations per multiply-add, computed without tensors.

With F FLOPs of the base model's forward pass, f of them up to the concepts' layer, width d, and C latents of which k
are active:

    sae          2 d C + 8 d k: encoder; then decoder and both gradients, for active latents only
    attribution  F forward, F - f backward to the layer, 2 d C encoder, 2 d k dot products with the gradient;
                 `integrated`: forward and backward once per step; `ablation`: F - f per latent; where several of
                 these share f, it counts once
"""

from cocomix.params import AttributionParams
from cocomix.shapes.models import TeacherSizes


def sae_flops(width: int, latents: int, active: float) -> float:
    """FLOPs of training the autoencoder, per token and epoch."""
    return 2 * width * latents + 8 * width * active


def attribution_flops(
    params: AttributionParams, teacher: TeacherSizes, latents: int, active: float, context: int
) -> float:
    """FLOPs of labelling, per token.

    Args:
        latents: latents of the autoencoder; with abstopk, half the number of concepts.
        active: mean number of active latents per token.
        context: tokens per window.
    """
    lower, upper = teacher.base_flops_to_layer, teacher.base_flops - teacher.base_flops_to_layer
    encoded = lower + 2 * teacher.base_width * latents
    slopes = 2 * teacher.base_width * (latents if params.value == "pre_activation" else active)
    match params.score:
        case "activation":
            return encoded
        case "gradient":
            return encoded + 2 * upper + slopes
        case "integrated":
            return encoded + params.integrated_steps * (lower + 2 * upper) + slopes
        case "ablation":
            return encoded + (1 + active) * upper * (context if params.scope == "sequence" else 1)

"""Operations of making what CoCoMix learns from, a token: matrix products, two a multiply-add. Knows no tensor.

With F operations of the base model's forward pass, f of them up to the concepts' layer, width d, C latents of which k
are active:

    sae          2 d C + 8 d k: encoder; then decoder and both gradients, of active latents only
    attribution  F forward, F - f backward to the layer, 2 d C encoder, 2 d k slopes; with `integrated` forward and
                 backward again each step, with `ablation` F - f for each latent; the f that several
                 of these share is left out
"""

from cocomix.params import AttributionParams
from cocomix.shapes.models import TeacherSizes


def sae_flops(width: int, latents: int, active: float) -> float:
    """Of training the autoencoder, a token and epoch."""
    return 2 * width * latents + 8 * width * active


def attribution_flops(
    params: AttributionParams, teacher: TeacherSizes, latents: int, active: float, context: int
) -> float:
    """Of labelling.

    Args:
        latents: of the autoencoder; with abstopk, half as many as the concepts.
        active: latents of a token, on average.
        context: tokens of a window.
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

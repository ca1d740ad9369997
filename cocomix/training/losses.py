"""Loss functions. All return sums over positions, in float32."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.modeling.kernels import linear_cross_entropy
from cocomix.params import HiddenDistance
from cocomix.tokens.window_data import NO_LABEL


def next_token_loss(logits: Tensor, windows: Tensor) -> Tensor:
    """Summed cross-entropy of each token given those before it.

    Args:
        logits: [batch, context, vocab].
        windows: token ids, int64 [batch, context].
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")


def fused_next_token_loss(hidden: Tensor, head: Tensor, windows: Tensor) -> Tensor:
    """`next_token_loss` of the logits `hidden @ head.T`, which are never all in memory.

    Args:
        hidden: [batch, context, d_model].
        head: [vocab, d_model].
        windows: token ids, int64 [batch, context].
    """
    return linear_cross_entropy(hidden[:, :-1].flatten(0, 1), head, windows[:, 1:].flatten())


def concept_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed concept loss: the mean cross-entropy to each position's labels (paper Eq. 2).

    The mean of CE(z, i) over labels i is logsumexp(z) - mean z_i. Positions without a label add nothing.

    Args:
        logits: z, [batch, context, num_concepts].
        labels: int64 [batch, context, k_attr], padded with `NO_LABEL`.
    """
    logits = logits.float()
    valid = labels != NO_LABEL
    labelled = valid.any(-1)
    chosen = logits.gather(-1, labels.clamp(min=0)).masked_fill(~valid, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)
    return ((logits.logsumexp(-1) - chosen) * labelled).sum()


def labelled_positions(labels: Tensor) -> Tensor:
    """Number of positions with at least one label: int64 []. labels: see `concept_loss`."""
    return torch.count_nonzero((labels != NO_LABEL).any(-1))


def distillation_loss(logits: Tensor, base_logits: Tensor) -> Tensor:
    """Summed KL(base || student) between the base model's and the student's distributions, in nats.

    Args:
        logits, base_logits: [..., vocab].
    """
    student, base = (each.flatten(0, -2).log_softmax(-1, dtype=torch.float32) for each in (logits, base_logits))
    return F.kl_div(student, base, reduction="sum", log_target=True)


def hidden_loss(predicted: Tensor, hidden: Tensor, distance: HiddenDistance) -> Tensor:
    """Summed distance between predictions and hidden states; each hidden state is normalised to mean 0, variance 1.

    Without the normalisation, the few large features of a residual stream dominate l1 and l2.

    Args:
        predicted, hidden: [..., d_model].
        distance: l1: mean absolute difference over the features; l2: mean squared difference; cosine: 1 - cosine.
    """
    target = F.layer_norm(hidden.float(), hidden.shape[-1:])
    match distance:
        case "l1":
            return (predicted - target).abs().mean(-1).sum()
        case "l2":
            return (predicted - target).square().mean(-1).sum()
        case "cosine":
            return (1 - F.cosine_similarity(predicted.float(), target, dim=-1)).sum()

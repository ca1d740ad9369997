"""The losses of knowledge distillation, and their gradient, without a tensor of [positions, vocab] in fp32.

As in `cocomix.modeling.kernels`: rows are scored a chunk at a time, losses and gradients are computed in blocks that
fit a core's cache, and the gradients overwrite the scores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cocomix.modeling.kernels import chunks, matmul_dtype, rows_at_once, softmax


def fused_distillation_losses(
    hidden: Tensor, head: Tensor, windows: Tensor, base_logits: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """`next_token_loss` and `distillation_loss` of the logits `hidden @ head.T`.

    The first carries the gradient of next-token loss + `kl_weight` * distillation loss; the second has no gradient.

    Args:
        hidden: [batch, context, d_model].
        head: [vocab, d_model].
        windows: token ids, int64 [batch, context].
        base_logits: [batch, context, vocab].
    """
    nexts = F.pad(windows[:, 1:], (0, 1), value=-1)
    rows = (each.flatten(0, 1) for each in (hidden, nexts, base_logits))
    tokens, divergence = _Distill.apply(head, *rows, kl_weight, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return tokens, divergence


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Tensor, x: Tensor, nexts: Tensor, base_scores: Tensor, kl_weight: float, differentiate: bool
    ) -> tuple[Tensor, Tensor]:
        head_cast = head.to(matmul_dtype(x))
        losses = torch.zeros(2, device=x.device)
        if differentiate:
            grad_head, grad_x = torch.zeros_like(head), torch.empty_like(x)
            ctx.save_for_backward(grad_head, grad_x)
        for some in chunks(len(x), len(head)):
            x_cast = x[some].to(head_cast.dtype)
            scores = x_cast @ head_cast.T
            losses += _to_slopes(scores, nexts[some], base_scores[some], kl_weight)
            if differentiate:
                counts = (nexts[some] >= 0)[:, None]
                grad_x[some] = (scores @ head_cast) * counts
                grad_head += scores.T @ (x_cast * counts)
        tokens, divergence = losses[0].clone(), losses[1].clone()
        ctx.mark_non_differentiable(divergence)
        return tokens, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _divergence: None) -> tuple[Tensor | None, ...]:
        grad_head, grad_x = ctx.saved_tensors
        return grad_head.mul_(grad), grad_x.mul_(grad), None, None, None, None


def _to_slopes(scores: Tensor, nexts: Tensor, base_scores: Tensor, kl_weight: float) -> Tensor:
    """Replace scores, in place, by the gradient of tokens + kl_weight * divergence; return both losses: [2].

    Rows without a next token add nothing to the losses; their gradients are meaningless, and the caller masks them.

    Args:
        scores, base_scores: [n, vocab].
        nexts: int64 [n], negative: no next token.
    """
    losses = torch.zeros(2, device=scores.device)
    rows = rows_at_once(len(scores), scores.shape[1], scores.device)
    for block, wanted, base in zip(*(torch.split(each, rows) for each in (scores, nexts, base_scores)), strict=True):
        counts, wanted = wanted >= 0, wanted.clamp(min=0)[:, None]
        probabilities, log_sum = softmax(block)
        tokens = log_sum - block.gather(-1, wanted).squeeze(-1)
        logs = base.log_softmax(-1, dtype=torch.float32)
        base_probabilities = logs.exp()
        divergence = logs.sub_(block).mul_(base_probabilities).sum(-1) + log_sum
        losses += (torch.stack([tokens, divergence]) * counts).sum(1)
        slopes = probabilities.mul_(1 + kl_weight).sub_(base_probabilities, alpha=kl_weight)
        block.copy_(slopes.scatter_add_(-1, wanted, torch.full_like(log_sum, -1)[:, None]))
    return losses

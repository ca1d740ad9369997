"""Knowledge distillation: next-token prediction plus a divergence from the base model's distribution.

The distribution is computed in each step, or sampled once and read (arXiv 2503.16870). With p the base model's
distribution, q the student's, both with logits divided by the temperature, and p^ the shares of the tokens that were
drawn from p:

    online  KL(p || q)
    cached  H(p^, q) - H(p), of which the expectation over the draws is KL(p || q); so it is of the gradient

The losses and their gradient are computed without a tensor of [positions, vocab] in fp32. As in
`cocomix.modeling.kernels`: rows are scored a chunk at a time, losses and gradients are computed in blocks that fit a
core's cache, and the gradients overwrite the scores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.base.flops import forward_flops
from cocomix.modeling.kernels import chunks, matmul_dtype, rows_at_once, softmax
from cocomix.params import KdParams
from cocomix.tokens.window_data import Drawn


class Distillation:
    """Distillation beside next-token prediction, as part of an objective.

    It is no module, so that the base model is neither trained nor saved.

    Args:
        params: its parameters.
        base: the base model, with `source: online`.
    """

    def __init__(self, params: KdParams, base: PreTrainedModel | None = None) -> None:
        self.params = params
        self._base = base

    def losses(
        self, hidden: Tensor, head: Tensor, windows: Tensor, drawn: Drawn | None, kl_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summed next-token loss and summed divergence.

        The first carries the gradient of a loss whose mean per token is the mean next-token loss plus `kl_weight` times
        temperature^2 times the mean divergence over `positions`. The second has no gradient.

        Args:
            hidden: [batch, context, d_model].
            head: [vocab, d_model].
            windows: token ids, int64 [batch, context].
            drawn: of [batch, context] positions, with `source: cached`.
            kl_weight: float32 [].
        """
        if self._base is not None:
            with torch.no_grad():
                # A pretrained base model's vocabulary may be padded beyond the tokenizer's.
                target = self._base(input_ids=windows, use_cache=False).logits[..., : len(head)]
            entropies = _entropies(target / self.params.temperature) if self.params.leave_out else None
        else:
            assert drawn is not None
            target, entropies = drawn, drawn.entropies
        context = windows.shape[1]
        kept = self._kept(entropies) if entropies is not None else torch.ones_like(windows[:, 1:], dtype=torch.bool)
        weight = kl_weight * (context - 1) / self._kept_in_window(context)
        return fused_distillation_losses(hidden, head, windows, target, weight, self.params.temperature, kept)

    def positions(self, windows: Tensor) -> int:
        """Number of positions with a divergence."""
        return windows.shape[0] * self._kept_in_window(windows.shape[1])

    def flops(self, context: int) -> int:
        """FLOPs per token in each step, besides the student's."""
        return forward_flops(self._base, context) if self._base is not None else 0

    def _kept_in_window(self, context: int) -> int:
        return max(1, context - 1 - round(self.params.leave_out * (context - 1)))

    def _kept(self, entropies: Tensor) -> Tensor:
        """Whether a position keeps its divergence: bool [batch, context - 1]; entropies: [batch, context]."""
        rows = entropies[:, :-1]
        least = rows.argsort(dim=1, stable=True)[:, : rows.shape[1] - self._kept_in_window(entropies.shape[1])]
        return torch.ones_like(rows, dtype=torch.bool).scatter_(1, least, value=False)


def _entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of distributions with these logits [batch, context, vocab]: float32 [batch, context]."""
    found = [torch.special.entr(each.softmax(-1, dtype=torch.float32)).sum(-1) for each in logits]
    return torch.stack(found)


def fused_distillation_losses(
    hidden: Tensor,
    head: Tensor,
    windows: Tensor,
    target: Tensor | Drawn,
    kl_weight: Tensor,
    temperature: float = 1.0,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Next-token loss and divergence of the logits `hidden @ head.T`, both summed.

    The first carries the gradient of next-token loss + `kl_weight` * temperature^2 * divergence; the second has no
    gradient.

    Args:
        hidden: [batch, context, d_model].
        head: [vocab, d_model].
        windows: token ids, int64 [batch, context].
        target: the base model's logits [batch, context, vocab], or what was drawn from its distribution.
        kl_weight: float32 [].
        temperature: divides both models' logits in the divergence; what was drawn had the same.
        kept: positions with a divergence, bool [batch, context - 1]; None: all.
    """
    nexts = F.pad(windows[:, 1:], (0, 1), value=-1)
    kept = (nexts >= 0) if kept is None else F.pad(kept, (0, 1), value=False)
    parts = target if isinstance(target, Drawn) else (target,)
    rows = [each.flatten(0, 1) for each in (hidden, nexts, kept, *parts)]
    tokens, divergence = _Distill.apply(head, *rows[:3], rows[3:], kl_weight, temperature, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return tokens, divergence


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: Tensor,
        x: Tensor,
        nexts: Tensor,
        kept: Tensor,
        target: list[Tensor],
        kl_weight: Tensor,
        temperature: float,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        head_cast = head.to(matmul_dtype(x))
        losses = torch.zeros(2, device=x.device)
        if differentiate:
            grad_head, grad_x = torch.zeros_like(head), torch.empty_like(x)
            ctx.save_for_backward(grad_head, grad_x)
        for some in chunks(len(x), len(head)):
            x_cast = x[some].to(head_cast.dtype)
            scores = x_cast @ head_cast.T
            chunk = [each[some] for each in (nexts, kept, *target)]
            losses += _to_slopes(scores, *chunk, kl_weight=kl_weight, temperature=temperature)
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
        return grad_head.mul_(grad), grad_x.mul_(grad), *[None] * 6


def _to_slopes(
    scores: Tensor, nexts: Tensor, kept: Tensor, *target: Tensor, kl_weight: Tensor, temperature: float
) -> Tensor:
    """Replace scores, in place, by the gradient of tokens + kl_weight * temperature^2 * divergence; return both losses.

    Rows without a next token add nothing to the losses; their gradients are meaningless, and the caller masks them.

    Args:
        scores: [n, vocab].
        nexts: int64 [n], negative: no next token.
        kept: whether a row has a divergence, bool [n].
        target: the base model's logits [n, vocab]; or ids, shares and entropies, as in `Drawn`.

    Returns:
        [2].
    """
    losses = torch.zeros(2, device=scores.device)
    rows = rows_at_once(len(scores), scores.shape[1], scores.device)
    for block, wanted, keeps, *base in zip(
        *(torch.split(each, rows) for each in (scores, nexts, kept, *target)), strict=True
    ):
        counts, wanted = wanted >= 0, wanted.clamp(min=0)[:, None]
        probabilities, log_sum = softmax(block)
        tokens = log_sum - block.gather(-1, wanted).squeeze(-1)
        tempered = block if temperature == 1 else block / temperature
        soft, soft_sum = (probabilities, log_sum) if temperature == 1 else softmax(tempered)
        weight = (kl_weight * temperature * keeps)[:, None]
        if len(base) == 1:
            logs = (base[0] / temperature).log_softmax(-1, dtype=torch.float32)
            base_probabilities = logs.exp()
            divergence = logs.sub_(tempered).mul_(base_probabilities).sum(-1) + soft_sum
            pull = base_probabilities.mul_(weight)
            slopes = probabilities + soft * weight if temperature != 1 else probabilities.mul_(1 + weight)
            slopes.sub_(pull)
        else:
            ids, shares, entropies = base
            ids = ids.clamp(min=0)
            divergence = soft_sum - (tempered.gather(-1, ids) * shares).sum(-1) - entropies
            slopes = probabilities + soft * weight if temperature != 1 else probabilities.mul_(1 + weight)
            slopes.scatter_add_(-1, ids, -weight * shares)
        losses += torch.stack([(tokens * counts).sum(), (divergence * (counts & keeps)).sum()])
        block.copy_(slopes.scatter_add_(-1, wanted, torch.full_like(log_sum, -1)[:, None]))
    return losses

"""The optimisers: AdamW for all parameters, or Muon for the matrices of the blocks and AdamW for the others.

Muon is for hidden layers: embeddings, the unembedding, the mixer, biases and norms have AdamW in either case. Each
parameter group says under `peak` what its peak learning rate is.
"""

from collections.abc import Callable, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from cocomix.params import TrainingParams
from cocomix.plumbing.device import bf16
from cocomix.shapes.models import newton_schulz_flops
from cocomix.training.objectives import Objective
from cocomix.training.schedule import learning_rate


class _WithoutBf16(TorchFunctionMode):
    """A context in which `Tensor.bfloat16` gives a copy of the same type."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0].clone() if func is Tensor.bfloat16 else func(*args, **(kwargs or {}))


class Muon(torch.optim.Muon):
    """torch's Muon, with two additions.

    - Fused matrices: the parts of one are orthogonalised apart, as Muon's authors do. Each parameter group says under
      `parts` in how many parts the columns of its matrices are divided; 1: not fused. Momentum is kept for the whole
      matrix, so that a checkpoint knows nothing of the parts.
    - It multiplies in bf16 only if `bf16()`, as all training does. torch's always does, which is ten times slower than
      fp32 on a CPU without instructions for it.
    """

    def step(self, closure: Any = None) -> Any:
        """Update the weights."""
        with nullcontext() if bf16() else _WithoutBf16():
            return super().step(closure)  # type: ignore[no-untyped-call]

    def _init_group(
        self, group: MutableMapping[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> bool:
        is_complex: bool = super()._init_group(group, weights, gradients, momenta)  # type: ignore[no-untyped-call]
        for tensors in (weights, gradients, momenta):
            tensors[:] = [part for each in tensors for part in each.chunk(group["parts"], dim=1)]
        return is_complex

    @property
    def flops(self) -> int:
        """FLOPs of a step: the matrix products of the orthogonalisation."""
        return sum(
            group["parts"] * newton_schulz_flops(each.shape[0], each.shape[1] // group["parts"])
            for group in self.param_groups
            for each in group["params"]
        )


def optimizers(objective: Objective, params: TrainingParams) -> list[Optimizer]:
    """The optimisers of a training run; each trainable parameter of the objective is in one of them."""
    if params.optimizer == "adamw":
        return [adamw(objective, params)]
    fused, single = block_matrices(objective)
    peak = params.muon_learning_rate or params.learning_rate
    groups = [{"params": fused, "parts": 3, "peak": peak}, {"params": single, "parts": 1, "peak": peak}]
    muon = Muon(
        [group for group in groups if group["params"]],
        lr=peak,
        weight_decay=params.weight_decay,
        # Updates as large as AdamW's, whatever the shape: AdamW's learning rate and weight decay stay good ones. The
        # other adjustment of torch takes rows for outputs, which are the columns in GPT-2.
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw(objective, params, without={*fused, *single}), muon]


def block_matrices(objective: Objective) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the blocks: those that hold queries, keys and values side by side, and the others."""
    blocks = nn.ModuleList(objective.blocks_in_training())
    attentions = [each for each in blocks.modules() if isinstance(each, GPT2Attention)]
    fused = [each.c_attn.weight for each in attentions]
    among = {*fused}
    return fused, [each for each in blocks.parameters() if each.ndim == 2 and each not in among]


def adamw(
    objective: Objective, params: TrainingParams, without: AbstractSet[nn.Parameter] = frozenset()
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, embeddings included; with `params.decay: all` also on biases and norms.

    The layer that makes the mixed vector has its own learning rate if the objective has one for it.
    """
    mixing_peak = objective.mixing_learning_rate or params.learning_rate
    mixing = {*objective.mixing_weights()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for each in objective.parameters():
        if each.requires_grad and each not in without:
            decay = params.weight_decay if each.ndim >= 2 or params.decay == "all" else 0.0
            peak = mixing_peak if each in mixing else params.learning_rate
            groups.setdefault((decay, peak), []).append(each)
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": decay, "peak": peak} for (decay, peak), weights in groups.items()],
        lr=params.learning_rate,
        betas=params.betas,
        fused=True,
    )


def update(optimizers: Sequence[Optimizer], params: TrainingParams, step: int) -> None:
    """Update the weights in a step (from 0) at its learning rates, and drop the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(params, step, group["peak"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

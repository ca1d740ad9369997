"""Distribute a model and its optimisers over processes, replicated (DDP) or sharded (FSDP2), and gather them again."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer

from cocomix.plumbing import interrupt
from cocomix.plumbing.device import bf16, device
from cocomix.plumbing.runtime import runtime

WHOLE = StateDictOptions(full_state_dict=True)


class Root(nn.Module):
    """The root module for FSDP2, so that its hooks are not on the objective itself."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, **batch: Any) -> Any:
        """Run the objective."""
        return self.objective(**batch)


def distribute(objective: nn.Module) -> nn.Module:
    """Wrap an objective so that its gradients are averaged over the processes; the weights are shared with it.

    Where `runtime().sharding` is fsdp, the weights of `objective` become shards: create the optimisers after this call.
    """
    run: nn.Module = torch.compile(objective) if runtime().compile else objective  # type: ignore[assignment]
    if runtime().world_size == 1:
        return run
    if runtime().sharding == "ddp":
        return DistributedDataParallel(run, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device().type, (runtime().world_size,))
    for block in objective.modules():
        if isinstance(block, GradientCheckpointingLayer):
            with_matrices = [each for each in block.children() if any(weight.ndim > 1 for weight in each.parameters())]
            fully_shard(with_matrices, mesh=mesh, mp_policy=_block_precision())
    root = Root(run)
    fully_shard(root, mesh=mesh)
    return root


def _block_precision() -> MixedPrecisionPolicy:
    """The precision in which a block's attention and MLP are gathered, and their gradients summed.

    In bf16 where autocast multiplies in bf16: half the bytes, and the numbers that autocast would make of the matrices.
    Norms of the residual stream and embeddings stay in fp32, those of queries and keys (`qk_norm`) do not. Gradients
    are summed in fp32.
    """
    if not bf16():
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def last_micro_batch(run: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Context for forward and backward in which processes exchange gradients only if `last`."""
    if isinstance(run, DistributedDataParallel):
        return nullcontext() if last else run.no_sync()
    if isinstance(run, FSDPModule):
        run.set_requires_gradient_sync(last)
    return nullcontext()


def clip(weights: list[nn.Parameter], largest: float) -> Tensor:
    """Clip the gradients' norm, over all shards, to `largest`. Returns the norm before clipping, []."""
    gradients = [each.grad for each in weights if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(weights, largest, norm)
    return norm


def whole_state(objective: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The unsharded state dicts of the model, and of the optimisers together; all processes must call this.

    They are complete in the first process.

    Unsharded tensors are not copied: save them before the next step. Shards are gathered one weight at a time onto the
    first process's CPU, a tied weight once.
    """
    model, state = get_state_dict(objective, optimizers)
    first: dict[nn.Parameter, str] = {}
    for name, weight in objective.named_parameters(remove_duplicate=False):
        same = first.setdefault(weight, name)
        model[name] = model[same] if same != name else _gathered(model[name])
    moments: dict[str, dict[str, Any]] = state["state"]  # type: ignore[assignment]
    # New mappings: the optimisers use the original ones.
    whole = {name: {key: _gathered(value) for key, value in each.items()} for name, each in moments.items()}
    return model, {**state, "state": whole}


def _gathered(value: Any) -> Any:
    """Gather a sharded tensor onto the first process's CPU, None in the other processes; return other values as is."""
    if not isinstance(value, DTensor):
        return value
    interrupt.alive()
    whole = value.full_tensor()
    return whole.cpu() if runtime().rank == 0 else None


def set_whole_state(
    objective: nn.Module, optimizers: Sequence[Optimizer], model: dict[str, Any], state: dict[str, Any]
) -> None:
    """Load the result of `whole_state`, with any number of processes and any `runtime().sharding`."""
    set_state_dict(objective, optimizers, model_state_dict=model, optim_state_dict=state, options=WHOLE)


def made_whole(model: nn.Module) -> nn.Module:
    """`model` itself, or if it is sharded, an unsharded copy; all processes must call this."""
    if not any(isinstance(each, DTensor) for each in model.parameters()):
        return model
    plain = type(model)(model.config).to(device())  # type: ignore[call-arg, arg-type]
    full = {
        name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in model.state_dict().items()
    }
    plain.load_state_dict(full)
    return plain

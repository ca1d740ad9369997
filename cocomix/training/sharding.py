"""A model and its optimiser over several processes: replicated (DDP) or in shares (FSDP2), and made whole again."""

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
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from cocomix.plumbing import interrupt
from cocomix.plumbing.device import device
from cocomix.plumbing.runtime import runtime

WHOLE = StateDictOptions(full_state_dict=True)


class Root(nn.Module):
    """The root of the shares, so that the hooks of FSDP2 stay off the objective itself."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, *batch: Tensor) -> Any:
        """What the objective returns."""
        return self.objective(*batch)


def distribute(objective: nn.Module) -> nn.Module:
    """The module to call for a loss, whose gradients are averaged over the processes; its weights are the objective's.

    The weights of `objective` become shares of themselves where `runtime().sharding` is fsdp: give them to the
    optimiser after this call.
    """
    run: nn.Module = torch.compile(objective) if runtime().compile else objective  # type: ignore[assignment]
    if runtime().world_size == 1:
        return run
    if runtime().sharding == "ddp":
        return DistributedDataParallel(run, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device().type, (runtime().world_size,))
    for block in objective.modules():
        if isinstance(block, GPT2Block):
            fully_shard(block, mesh=mesh)
    root = Root(run)
    fully_shard(root, mesh=mesh)
    return root


def last_micro_batch(run: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around forward and backward: the processes exchange gradients only where `last`."""
    if isinstance(run, DistributedDataParallel):
        return nullcontext() if last else run.no_sync()
    if isinstance(run, FSDPModule):
        run.set_requires_gradient_sync(last)
    return nullcontext()


def clip(weights: list[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients down to a norm of `largest` over all shares. Returns the norm before, []."""
    gradients = [each.grad for each in weights if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(weights, largest, norm)
    return norm


def whole_state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of both by name, whole in the first process, however they are spread; all must call.

    What is not in shares is no copy: save it before the next step. Shares are gathered one by one onto the CPU of the
    first process, those of a weight with several names once.
    """
    model, state = get_state_dict(objective, optimizer)
    first: dict[nn.Parameter, str] = {}
    for name, weight in objective.named_parameters(remove_duplicate=False):
        same = first.setdefault(weight, name)
        model[name] = model[same] if same != name else _gathered(model[name])
    moments: dict[str, dict[str, Any]] = state["state"]  # type: ignore[assignment]
    # Other mappings: those of the optimiser are in use.
    whole = {name: {key: _gathered(value) for key, value in each.items()} for name, each in moments.items()}
    return model, {**state, "state": whole}


def _gathered(value: Any) -> Any:
    """A tensor in shares whole, on the CPU of the first process, and None in the others; anything else as it is."""
    if not isinstance(value, DTensor):
        return value
    interrupt.alive()
    whole = value.full_tensor()
    return whole.cpu() if runtime().rank == 0 else None


def set_whole_state(
    objective: nn.Module, optimizer: torch.optim.Optimizer, model: dict[str, Any], state: dict[str, Any]
) -> None:
    """Spread what `whole_state` gave, in as many processes as there are now, by whatever `runtime().sharding`."""
    set_state_dict(objective, optimizer, model_state_dict=model, optim_state_dict=state, options=WHOLE)


def made_whole(model: nn.Module) -> nn.Module:
    """`model` itself, or if it is in shares a plain one like it with all of each weight; all processes must call."""
    if not any(isinstance(each, DTensor) for each in model.parameters()):
        return model
    plain = type(model)(model.config).to(device())  # type: ignore[call-arg, arg-type]
    full = {
        name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in model.state_dict().items()
    }
    plain.load_state_dict(full)
    return plain

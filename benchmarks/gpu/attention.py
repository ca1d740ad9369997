"""Part `attention`: which kernel each block's attention takes, in training and in evaluation."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2LMHeadModel

from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.published import shape
from benchmarks.gpu.setting import Setting
from benchmarks.student_step import Shape, cocomix_model
from cocomix.plumbing.device import autocast, device
from cocomix.training.objectives import ConceptMixing, Objective, Weighted
from cocomix.training.whole_windows import whole_windows


def measurements(setting: Setting) -> dict[str, Measurement]:
    steps = shape(setting.sizes)
    return {
        "ntp": partial(kernels, steps, "ntp"),
        "cocomix": partial(kernels, steps, "cocomix"),
        "ntp in fp32": partial(kernels, steps, "ntp", mixed=False),
        "cocomix in fp32": partial(kernels, steps, "cocomix", mixed=False),
    }


def kernels(steps: Shape, method: str, *, mixed: bool = True) -> dict[str, str]:
    """The operators of each block's attention in a forward pass, by block.

    Args:
        mixed: as in training, in bf16 where the hardware multiplies it; otherwise as in evaluation.
    """
    batch = steps.data()
    if method == "ntp":
        model: nn.Module = GPT2LMHeadModel(steps.ntp()).to(device())
        run = partial(Objective(model), batch["windows"])  # type: ignore[arg-type]
    else:
        model = cocomix_model(steps)
        run = partial(ConceptMixing(model, Weighted(0.1)), **batch)  # type: ignore[arg-type]
    seen = _Operators()
    for number, block in enumerate(model.transformer.h):  # type: ignore[arg-type, union-attr]
        block.register_forward_pre_hook(lambda *_, number=number: seen.enter(f"block {number}"))
        block.register_forward_hook(lambda *_: seen.enter(None))
    as_run = (whole_windows(model), autocast()) if mixed else ()  # type: ignore[arg-type]
    with seen, ExitStack() as stack:
        for each in as_run:
            stack.enter_context(each)
        run()
    return {block: ", ".join(sorted(names)) for block, names in seen.found.items()}


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operators compute attention, and whether they are given a mask."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, set[str]] = {}
        self._block: str | None = None

    def enter(self, block: str | None) -> None:
        """Whose operators follow."""
        self._block = block

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(operator).removeprefix("aten.").partition(".")[0]
        if self._block and ("attention" in name or name in ("bmm", "_softmax")):
            given = [each for each in [*args[3:], *(kwargs or {}).values()] if isinstance(each, torch.Tensor)]
            masked = " with a mask" if "attention" in name and given else ""
            self.found.setdefault(self._block, set()).add(name.strip("_") + masked)
        return operator(*args, **(kwargs or {}))

"""The training loop, one for all methods.

    for each step:
        windows of the step         a function of (seed, step): the same for any number of processes
        forward and backward        in micro-batches, gradients summed over them and over the processes
        clip, update                by AdamW or Muon; the next step's windows are prepared meanwhile
        every eval_every steps      a row of the curve, written to curve.csv immediately
        every checkpoint_every      a checkpoint; also on SIGTERM or SIGINT

A run that was killed and restarted resumes from its newest checkpoint and, on a CPU, ends with the same bytes.
"""

import csv
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from cocomix.base.loading import micro_batch
from cocomix.params import TrainingParams
from cocomix.plumbing import checkpoint, distributed, interrupt
from cocomix.plumbing.device import autocast, device, peak_flops, peak_memory, send, tf32
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import progress, say
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.window_data import Batch, Drawn, WindowData
from cocomix.training.objectives import Auxiliary, Objective
from cocomix.training.optimizers import Muon, optimizers, update
from cocomix.training.order import WindowOrder
from cocomix.training.schedule import factor, steps_with
from cocomix.training.sharding import clip, distribute, last_micro_batch, made_whole, set_whole_state, whole_state
from cocomix.training.tensorboard import tensorboard
from cocomix.training.whole_windows import whole_windows


@dataclass(frozen=True)
class TrainingCurveRow:
    """A point of the learning curve."""

    step: int
    tokens: int
    """Number of text tokens trained on so far."""
    flops: float
    """Training FLOPs so far, by the objective's `training_flops` and `distillation_flops`."""
    seconds: float
    """Training seconds so far, including earlier processes, without evaluation."""
    train_loss: float
    """Nats per token, mean since the previous row."""
    validation_loss: float
    """Nats per token, on `eval_windows` windows."""
    auxiliary: dict[Auxiliary, float]
    """Each auxiliary loss of the method on these windows, per position that has it: nats, or a distance for hidden
    states."""

    def columns(self) -> dict[str, float]:
        """The fields, and each auxiliary loss as a column of its own, such as `concept_loss`."""
        fields = {name: each for name, each in asdict(self).items() if name != "auxiliary"}
        return fields | {f"{name}_loss": each for name, each in self.auxiliary.items()}


class StepData(NamedTuple):
    """The data of one step."""

    rows: NDArray[np.int64]
    """Window numbers of the step, of all processes."""
    parts: list[Batch]
    """Micro-batches of this process's share, on the device."""
    positions: dict[Auxiliary, int]
    """Positions of each auxiliary loss in this process's share."""


class Usage(NamedTuple):
    """Hardware usage since the last start or resumption."""

    peak_memory: int
    """Bytes, maximum over the processes."""
    utilisation: float | None
    """Model FLOPs utilisation (MFU), by `training_flops`; None: the device's peak is unknown."""


class Training:
    """A training run.

    Args:
        objective: the objective to minimise; after `run`, its model is trained, and unsharded in each process.
        train, validation: the data.
        params: hyperparameters.
        seed: seed of the data order and of dropout (the caller initialises the model).
        folder: the folder of the checkpoints, also of those of an earlier process, and of curve.csv.

    Raises:
        UserError: when a step, an evaluation or the validation split has fewer windows than there are processes, or
            fsdp cannot divide the windows evenly.
    """

    def __init__(
        self,
        objective: Objective,
        train: WindowData,
        validation: WindowData,
        params: TrainingParams,
        seed: int,
        folder: Path,
    ) -> None:
        if min(params.batch_size, params.eval_windows, len(validation.windows)) < runtime().world_size:
            raise UserError(
                f"batch_size ({params.batch_size}), eval_windows ({params.eval_windows}) and the validation windows "
                f"({len(validation.windows)}) must not be fewer than the processes ({runtime().world_size}); "
                "set COCOMIX_PROCESSES"
            )
        self._params, self._seed, self._folder = params, seed, folder
        train.read_at_random()
        self._train, self._context = train, train.windows.shape[1]
        spread = np.linspace(0, len(validation.windows), params.eval_windows, endpoint=False).astype(np.int64)
        self._validation, self._eval_rows = validation, np.unique(spread)
        if runtime().sharding == "fsdp" and (
            params.batch_size % runtime().world_size or len(self._eval_rows) % runtime().world_size
        ):
            raise UserError(
                f"batch_size ({params.batch_size}) and a point of the curve's windows ({len(self._eval_rows)}) must be "
                f"multiples of the processes ({runtime().world_size}) with COCOMIX_SHARDING=fsdp"
            )
        self._objective = objective.to(device()).train()
        if runtime().activation_checkpointing:
            objective.checkpoint_activations()
        self._run = distribute(self._objective)
        # Evaluation has other batch shapes, which are not worth compiling.
        self._evaluated = self._run if isinstance(self._run, FSDPModule) else self._objective
        self._parameters = [each for each in objective.parameters() if each.requires_grad]
        self._optimizers = optimizers(objective, params)
        self._order = WindowOrder(len(train.windows), params.batch_size, seed)
        self._step, self._seconds, self._saved_step = 0, 0.0, -1
        self._curve: list[TrainingCurveRow] = []
        self._loss_sum, self._loss_count = 0.0, 0
        self._next: StepData | None = None
        self.usage = Usage(0, None)
        """Set by `run`."""

    def run(self, task: str) -> list[TrainingCurveRow]:
        """Train to the end, from the newest checkpoint if there is one. Returns the curve.

        Raises:
            UserError: when the loss or its gradient is not finite.
        """
        self._resume()
        start, seconds = self._step, self._seconds
        step_tokens = self._params.batch_size * self._context
        total = self._params.steps * step_tokens
        with (
            tf32(),
            whole_windows(self._objective.model),
            tensorboard(task, self._step) as board,
            progress(task, total, "tokens", done=self._step * step_tokens, lockstep=True) as bar,
        ):
            while self._step < self._params.steps:
                started = time.perf_counter()
                loss, norm = self._train_step()
                self._seconds += time.perf_counter() - started
                self._step += 1
                rate = self._optimizers[0].param_groups[0]["lr"]
                board({"step": self._step, "loss": loss, "gradient_norm": norm, "learning_rate": rate})
                if self._step % self._params.eval_every == 0 or self._step == self._params.steps:
                    self._curve.append(self._evaluate())
                    board(self._curve[-1].columns())
                    if runtime().rank == 0:
                        write_curve(self._folder / "curve.csv", self._curve)
                if self._step % self._params.checkpoint_every == 0 or self._step == self._params.steps:
                    self._save()
                used = self._usage(start, self._seconds - seconds)
                try:
                    bar.advance(step_tokens, loss=f"{loss:.3f}", norm=f"{norm:.2f}", **_shown(used))
                except Interrupted:
                    self._save()
                    raise
        self.usage = self._usage(start, self._seconds - seconds)
        self.usage = self.usage._replace(peak_memory=distributed.maximum(self.usage.peak_memory))
        self._objective.model = made_whole(self._objective.model)
        return self._curve

    def _train_step(self) -> tuple[float, float]:
        """One optimiser step. Returns the loss per token and the norm of the gradient."""
        batch = self._next or self._batch(self._step)
        # Dropout's randomness is also a function of the step, so that no generator state needs saving.
        torch.manual_seed(int(np.random.SeedSequence([self._seed, self._step, runtime().rank]).generate_state(1)[0]))
        positions = self._params.batch_size * (self._context - 1)
        supervised = dict(zip(batch.positions, distributed.totals(*batch.positions.values()), strict=True))
        weights = self._weights_of(self._step)
        # DDP and FSDP average the gradients over the processes; the loss below needs their sum.
        scale = runtime().world_size
        loss = torch.zeros((), device=device())
        for number, part in enumerate(batch.parts):
            interrupt.alive()
            with last_micro_batch(self._run, number == len(batch.parts) - 1):
                with autocast():
                    losses = self._run(**part, kl_weight=_as_tensor(weights.get("distillation")))
                total = losses.tokens / positions
                for name, loss_sum in losses.auxiliary.items():
                    total = total + weights[name] * loss_sum / max(supervised[name], 1)
                (total * scale).backward()
            loss += losses.tokens.detach()
        norm = clip(self._parameters, self._params.clip)
        update(self._optimizers, self._params, self._step)
        self._next = self._batch(self._step + 1) if self._step + 1 < self._params.steps else None
        # Everything above is queued on a GPU asynchronously; this is the only synchronisation of a step.
        own_loss, own_norm = torch.stack([loss, norm.float()]).tolist()
        # Summing makes a NaN or infinity in one process visible in all.
        sum_loss, sum_norm = distributed.totals(own_loss, own_norm)
        if not math.isfinite(sum_loss + sum_norm):
            self._give_up(batch.rows, "loss" if not math.isfinite(sum_loss) else "gradient")
        self._loss_sum += sum_loss
        self._loss_count += positions
        return sum_loss / positions, own_norm

    def _batch(self, step: int) -> StepData:
        """The batch of a step (from 0)."""
        rows = self._order.batch(step)
        share, places = self._objective.teacher_forcing, step * len(rows) + np.arange(len(rows))
        forced = np.floor((places + 1) * share) > np.floor(places * share)  # evenly spread over the run's windows
        mine = slice(runtime().rank, None, runtime().world_size)
        parts = [self._train.batch(each) for each in _split(rows[mine], runtime().micro_batch)]
        if share:
            for part, here in zip(parts, _split(forced[mine], runtime().micro_batch), strict=True):
                part["forced_rows"] = torch.from_numpy(here)
        counts = [self._positions(part) for part in parts]
        positions = {name: sum(each[name] for each in counts) for name in self._objective.weights}
        return StepData(rows, [_sent(part) for part in parts], positions)

    def _positions(self, batch: Batch) -> dict[Auxiliary, int]:
        return self._objective.positions(batch["windows"], batch.get("labels"))

    def _weights_of(self, step: int) -> dict[Auxiliary, float]:
        """The weight of each auxiliary loss in a step."""
        return {
            name: each.weight * factor(each.schedule, self._params, step)
            for name, each in self._objective.weights.items()
        }

    def _flops(self, steps: int) -> int:
        """Training FLOPs of the first steps, with Muon's; without the base model's where distillation's weight is 0."""
        distillation = self._objective.weights.get("distillation")
        distilled = min(steps, steps_with(distillation.schedule, self._params)) if distillation else 0
        student, base = (
            each(self._context) for each in (self._objective.training_flops, self._objective.distillation_flops)
        )
        updates = steps * sum(each.flops for each in self._optimizers if isinstance(each, Muon))
        return self._params.batch_size * self._context * (student * steps + base * distilled) + updates

    def _give_up(self, rows: NDArray[np.int64], what: str) -> NoReturn:
        checkpoint_file = checkpoint.newest(self._folder)
        windows = ", ".join(map(str, rows[:8])) + (f", ... ({len(rows)})" if len(rows) > 8 else "")
        raise UserError(
            f"step {self._step}: the {what} is not finite (windows {windows}); the last good checkpoint is "
            f"{checkpoint_file or 'none yet'}; a smaller learning_rate, or COCOMIX_PRECISION=fp32, may help"
        )

    def _usage(self, start: int, seconds: float) -> Usage:
        """Usage in the steps from `start`, which took so many seconds."""
        peak, flops = peak_flops(), self._flops(self._step) - self._flops(start)
        return Usage(peak_memory(), flops / (peak * runtime().world_size * seconds) if peak and seconds else None)

    @torch.no_grad()
    def _evaluate(self) -> TrainingCurveRow:
        self._objective.eval()
        names = list(self._objective.weights)
        tokens_loss, tokens = 0.0, 0.0
        auxiliary, positions = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        kl_weight = torch.ones((), device=device()) if "distillation" in names else None
        rows = self._eval_rows[runtime().rank :: runtime().world_size]
        for some in _split(rows, min(self._params.batch_size, micro_batch(self._context))):
            interrupt.alive()
            batch = self._validation.batch(some)
            with autocast():
                losses = self._evaluated(**_sent(batch), kl_weight=kl_weight)
            tokens_loss += float(losses.tokens)
            tokens += batch["windows"][:, 1:].numel()
            here = self._positions(batch)
            for name in names:
                auxiliary[name] += float(losses.auxiliary[name])
                positions[name] += here[name]
        self._objective.train()
        tokens_loss, tokens, *sums = distributed.totals(tokens_loss, tokens, *auxiliary.values(), *positions.values())
        means = (total / max(count, 1) for total, count in zip(sums[: len(names)], sums[len(names) :], strict=True))
        train_loss = self._loss_sum / self._loss_count
        self._loss_sum, self._loss_count = 0.0, 0
        tokens_seen = self._step * self._params.batch_size * self._context
        return TrainingCurveRow(
            step=self._step,
            tokens=tokens_seen,
            flops=float(self._flops(self._step)),
            seconds=round(self._seconds, 3),
            train_loss=round(train_loss, 6),
            validation_loss=round(tokens_loss / tokens, 6),
            auxiliary={name: round(each, 6) for name, each in zip(names, means, strict=True)},
        )

    def _save(self) -> None:
        if self._saved_step == self._step:  # stopped just after a regular checkpoint
            return
        self._saved_step = self._step
        model, optimizer = whole_state(self._objective, self._optimizers)
        if runtime().rank != 0:
            return
        state = {
            "step": self._step,
            "seconds": self._seconds,
            "curve": json.dumps([asdict(row) for row in self._curve]),
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "model": model,
            "optimizer": optimizer,
        }
        checkpoint.save(self._folder, self._step, state)

    def _resume(self) -> None:
        state = checkpoint.load(self._folder)
        if state is None:
            return
        set_whole_state(self._objective, self._optimizers, state["model"], state["optimizer"])
        self._step, self._seconds = state["step"], state["seconds"]
        self._curve = [TrainingCurveRow(**row) for row in json.loads(state["curve"])]
        self._loss_sum, self._loss_count = state["loss_sum"], state["loss_count"]
        say(f"going on from step {self._step}")


def write_curve(path: Path, curve: list[TrainingCurveRow]) -> None:
    """Write a curve as CSV, with the columns of its rows; an empty one, with those that any row has."""
    columns = curve[0].columns() if curve else [each.name for each in fields(TrainingCurveRow)[:-1]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(row.columns() for row in curve)


def _as_tensor(weight: float | None) -> Tensor | None:
    """A weight, which changes from step to step, as what compiled code takes without compiling again; None for 0."""
    return torch.full((), weight, device=device()) if weight else None  # torch.tensor would wait for a GPU


def _sent(batch: Batch) -> Batch:
    """A batch on the device."""

    def of(column: Tensor | Drawn) -> Tensor | Drawn:
        return Drawn(*map(send, column)) if isinstance(column, Drawn) else send(column)

    return cast(Batch, {name: of(cast(Tensor | Drawn, column)) for name, column in batch.items()})


def _split(rows: NDArray[Any], size: int | Literal["auto"]) -> list[NDArray[Any]]:
    """Split `rows` into parts of at most `size`; auto: one part."""
    return np.array_split(rows, math.ceil(len(rows) / size)) if size != "auto" else [rows]


def _shown(usage: Usage) -> dict[str, str]:
    shown = {"memory": f"{usage.peak_memory / 2**30:.1f}G"}
    return shown if usage.utilisation is None else shown | {"MFU": f"{usage.utilisation:.0%}"}

"""Training the sparse autoencoder: one pass, or a few, over the activation store."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cocomix import checkpoint
from cocomix.activations.store import ActivationStore
from cocomix.device import device
from cocomix.errors import UserError
from cocomix.interrupt import Interrupted
from cocomix.params import SaeParams
from cocomix.progress import progress, say
from cocomix.sae.architectures import batch_top, encode_to_train
from cocomix.sae.autoencoder import Latents, SaeConfig, SparseAutoencoder
from cocomix.sae.sparse import dots, top_indices, weighted_sum

SAMPLE_ROWS = 32_768
"""Activations behind the initial bias and the scale of the loss (Gao et al., App. A.1)."""
THRESHOLD_RATE = 10
"""The learning rate of jumprelu's thresholds over that of the weights: they have further to go."""
CURVE_ROWS = 200
"""About how many rows a curve has."""


class CurveRow(NamedTuple):
    """A point of the training curve."""

    step: int
    tokens: int
    """Activations seen."""
    fvu: float
    """Fraction of variance unexplained in this step's batch, normalised space."""
    aux: float
    """Fraction of the remaining error's variance that the dead latents leave unexplained; 0: none is dead."""
    dead: float
    """Share of the latents that have not fired for `dead_tokens` tokens."""
    l0: float
    """Active latents of an activation, on average, in this step's batch."""


class Step(NamedTuple):
    """What a step came to; it minimises `fvu + own + aux_weight * aux`."""

    fvu: Tensor
    own: Tensor
    """The loss of the architecture's own."""
    aux: Tensor
    l0: float


class SaeTraining:
    """A training run.

    Args:
        folder: where the checkpoints are, also those of an earlier process.

    Raises:
        UserError: when the store holds less than one batch.
    """

    def __init__(self, store: ActivationStore, params: SaeParams, folder: Path) -> None:
        self._store, self._params, self._folder = store, params, folder
        self._epoch_steps = store.rows("train") // params.batch_size
        if not self._epoch_steps:
            raise UserError(f"sae.batch_size: {params.batch_size}: the store holds {store.rows('train')} activations")
        self._steps = params.epochs * self._epoch_steps
        config = SaeConfig(
            architecture=params.architecture,
            d_model=store.d_model,
            latents=params.latents,
            k=params.k,
            normalize=params.normalize,
            layer=store.site.layer,
            location=store.site.location,
        )
        self.sae = SparseAutoencoder(config).to(device())
        groups: list[dict[str, Any]] = [
            {"params": [each], "rate": THRESHOLD_RATE if name == "threshold" else 1.0}
            for name, each in self.sae.named_parameters()
        ]
        self._optimizer = torch.optim.Adam(groups, params.learning_rate, eps=6.25e-10, fused=True)
        self._variance = torch.ones((), device=device())
        self._tokens_since_fired = torch.zeros(params.latents, dtype=torch.int64, device=device())
        self._average = (
            {name: torch.zeros_like(each) for name, each in self.sae.state_dict().items()} if params.ema else {}
        )
        self._step = 0
        self._curve: list[CurveRow] = []

    def run(self) -> list[CurveRow]:
        """Train to the end, from the newest checkpoint if there is one. Returns the curve."""
        if state := checkpoint.load(self._folder):
            self._restore(state)
        else:
            self._initialise()
        size = self._params.batch_size
        with progress("sae", self._steps * size, "tokens", self._step * size) as bar:
            while self._step < self._steps:
                epoch, start = divmod(self._step, self._epoch_steps)
                batches = self._store.batches("train", size, seed=self._params.seed, epoch=epoch, start=start)
                try:
                    for x in batches:
                        step = self._train_step(x.to(device()))
                        self._step += 1
                        if self._step % max(1, self._steps // CURVE_ROWS) == 0 or self._step == self._steps:
                            self._curve.append(self._point(step))
                        if self._step % self._params.checkpoint_every == 0 or self._step == self._steps:
                            self._save()
                        bar.advance(size, **self._shown())
                except Interrupted:
                    self._save()
                    raise
        if self._params.ema:
            self.sae.load_state_dict(self._average)
            normalize_rows(self.sae.decoder)
        return self._curve

    def _train_step(self, x: Tensor) -> Step:
        x = self.sae.normalize(x).x
        latents, own = encode_to_train(self.sae, x, self._variance, self._sparsity_weight(), self._params.prefixes)
        l0 = self._count_firing(latents)
        error = x - self.sae.decode(latents)
        fvu, aux = error.square().mean() / self._variance, self._aux_loss(x, error.detach())
        (fvu + own + self._params.aux_weight * aux).backward()  # type: ignore[no-untyped-call]
        remove_parallel_gradient(self.sae.decoder)
        for group in self._optimizer.param_groups:
            share = group["rate"] * learning_rate_share(self._params, self._step, self._steps)
            group["lr"] = self._params.learning_rate * share
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        normalize_rows(self.sae.decoder)
        if self._params.architecture == "jumprelu":
            self.sae.threshold.data.clamp_(min=0)
        self._update_average()
        return Step(fvu.detach(), own.detach(), aux.detach(), l0)

    def _aux_loss(self, x: Tensor, error: Tensor) -> Tensor:
        """AuxK: the dead latents reconstruct what is left, so that they get a gradient and revive."""
        dead = (self._tokens_since_fired > self._params.dead_tokens).nonzero().squeeze(1)
        if not len(dead):
            return x.new_zeros(())
        sae, centered = self.sae, x - self.sae.pre_bias
        encoder, bias = sae.encoder.index_select(0, dead), sae.latent_bias.index_select(0, dead)
        signed = self._params.architecture == "abstopk"
        chosen = top_indices(centered, encoder, bias, min(self._params.aux_k, len(dead)), by_size=signed)
        values = dots(centered, encoder, chosen) + bias[chosen]
        values = values if signed else values.relu()
        left = error - weighted_sum(values, sae.decoder, dead[chosen])
        # Where the error has no variance, nothing is left to learn.
        return (left.square().mean() / error.var(0, correction=0).mean()).nan_to_num(0.0)

    @torch.no_grad()
    def _count_firing(self, latents: Latents) -> float:
        """Count the tokens since each latent has fired. Returns how many fire for a token, on average."""
        firing = latents.indices[latents.values != 0]
        self._tokens_since_fired += len(latents.indices)
        fired = torch.zeros_like(self._tokens_since_fired, dtype=torch.bool)
        fired[firing] = True
        self._tokens_since_fired.masked_fill_(fired, 0)
        return len(firing) / len(latents.indices)

    @torch.no_grad()
    def _update_average(self) -> None:
        """The moving average of the weights, without a trace of where it began (as Adam's)."""
        if past := self._params.ema:
            share = (1 - past) / (1 - past ** (self._step + 1))
            for name, weight in self.sae.state_dict().items():
                self._average[name].lerp_(weight, share)

    def _sparsity_weight(self) -> float:
        """Of this step: it rises from 0."""
        rise = self._params.sparsity_warmup_share * self._steps
        return (self._params.sparsity_weight or 0.0) * min(1.0, self._step / max(rise, 1.0))

    @torch.no_grad()
    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(self._params.seed)
        sample_size = min(SAMPLE_ROWS, self._store.rows("train"))
        x = next(self._store.batches("train", sample_size, seed=self._params.seed))
        x = x.to(device())
        if self._params.normalize == "whiten":
            self.sae.mean.copy_(x.mean(0))
            self.sae.std.copy_(x.std(0).clamp(min=1e-5))
        x = self.sae.normalize(x).x
        self._variance = x.var(0, correction=0).mean()
        self.sae.pre_bias.copy_(geometric_median(x))
        directions = torch.randn(self.sae.decoder.shape, generator=generator)
        self.sae.decoder.copy_(directions)
        normalize_rows(self.sae.decoder)
        self.sae.encoder.copy_(self.sae.decoder)
        # k rows that are not orthogonal overshoot: scale the encoder so that unit vectors come back at unit length.
        unit = torch.randn(256, self._store.d_model, generator=generator).to(device())
        unit /= unit.norm(dim=1, keepdim=True)
        cut = self._params.architecture in ("batchtopk", "matryoshka", "jumprelu")
        latents = batch_top(self.sae, unit).latents if cut else self.sae.encode(unit + self.sae.pre_bias)
        centered = self.sae.decode(latents) - self.sae.pre_bias
        self.sae.encoder.div_(centered.norm(dim=1).mean())
        if cut:
            # So that k latents are active from the first step on; the gradient of a threshold reaches no further than
            # the kernel is wide.
            self.sae.threshold.fill_(batch_top(self.sae, x[: self._params.batch_size] - self.sae.pre_bias).least)

    def _point(self, step: Step) -> CurveRow:
        dead = (self._tokens_since_fired > self._params.dead_tokens).float().mean()
        tokens = self._step * self._params.batch_size
        return CurveRow(self._step, tokens, float(step.fvu), float(step.aux), float(dead), step.l0)

    def _shown(self) -> dict[str, str]:
        return {"fvu": f"{self._curve[-1].fvu:.4f}", "dead": f"{self._curve[-1].dead:.1%}"} if self._curve else {}

    def _save(self) -> None:
        state = {
            "step": self._step,
            "sae": self.sae.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "variance": self._variance,
            "tokens_since_fired": self._tokens_since_fired,
            "average": self._average,
            "curve": [tuple(row) for row in self._curve],
        }
        checkpoint.save(self._folder, self._step, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.sae.load_state_dict(state["sae"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._variance.copy_(state["variance"])
        self._tokens_since_fired.copy_(state["tokens_since_fired"])
        for name, each in self._average.items():
            each.copy_(state["average"][name])
        self._curve = [CurveRow(*row) for row in state["curve"]]
        say(f"sae: going on from step {self._step}")


def learning_rate_share(params: SaeParams, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) over its peak: a linear rise, a plateau, a linear fall towards zero."""
    rise, fall = params.warmup_share * steps, params.decay_share * steps
    return min(1.0, (step + 1) / max(rise, 1.0), (steps - step) / max(fall, 1.0))


@torch.no_grad()
def geometric_median(x: Tensor, rounds: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to the rows of `x` [n, d] (Weiszfeld's iteration): [d]."""
    median = x.mean(0)
    for _ in range(rounds):
        weights = 1 / (x - median).norm(dim=1).clamp(min=1e-6)
        before, median = median, weights @ x / weights.sum()
        if (median - before).norm() <= tolerance * median.norm():
            break
    return median


@torch.no_grad()
def normalize_rows(weight: Tensor) -> None:
    """Scale each row to length 1, in place."""
    weight /= weight.norm(dim=1, keepdim=True)


@torch.no_grad()
def remove_parallel_gradient(weight: Tensor) -> None:
    """Take from the gradient of unit rows the part that would only change their length, in place."""
    assert weight.grad is not None
    weight.grad -= (weight.grad * weight).sum(1, keepdim=True) * weight


def write_curve(path: Path, curve: list[CurveRow]) -> None:
    """The curve as CSV, a column a field."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CurveRow._fields)
        writer.writerows(curve)

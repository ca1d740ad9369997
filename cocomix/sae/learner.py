"""An autoencoder in training: initialisation, optimiser steps and checkpoint state."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cocomix.params import SaeParams, Site
from cocomix.plumbing import distributed
from cocomix.plumbing.device import device
from cocomix.plumbing.runtime import runtime
from cocomix.sae.architectures import batch_top, encode_to_train
from cocomix.sae.autoencoder import Latents, SaeConfig, SparseAutoencoder
from cocomix.sae.sparse import dots, top_indices, weighted_sum

THRESHOLD_RATE = 10
"""Learning rate of jumprelu's thresholds relative to that of the weights, since thresholds move further."""
CURVE_ROWS = 200
"""Approximate number of rows of the training curve."""


class SaeCurveRow(NamedTuple):
    """A point of the training curve."""

    step: int
    tokens: int
    """Number of activations trained on so far."""
    fvu: float
    """Fraction of variance unexplained in this step's batch, normalised space."""
    aux: float
    """Fraction of the reconstruction error's variance that the dead latents leave unexplained; 0: none is dead."""
    dead: float
    """Share of the latents that have not fired for more than `dead_tokens` tokens."""
    l0: float
    """Mean number of active latents per activation in this step's batch."""


class Learner:
    """An autoencoder in training.

    With several processes, each trains on an equal share of each batch, and all have the same weights; batchtopk and
    matryoshka then select the largest latents of a share instead of the batch.

    Args:
        site: the site in the base model whose activations it learns.
        steps: number of steps of the whole training.
    """

    def __init__(self, params: SaeParams, site: Site, d_model: int, steps: int) -> None:
        self._params, self._steps = params, steps
        config = SaeConfig(
            architecture=params.architecture,
            d_model=d_model,
            latents=params.latents,
            k=params.k,
            # Adam's step size does not scale with the activations: `none` trains at scale 1, which `folded` undoes.
            normalize="whiten" if params.normalize == "none" else params.normalize,
            layer=site.layer,
            location=site.location,
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
        self.step = 0
        """Number of steps done."""
        self.curve: list[SaeCurveRow] = []

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Initialise normalisation, weights and thresholds from a sample of activations [n, d_model]."""
        generator = torch.Generator().manual_seed(self._params.seed)
        if self._params.normalize == "whiten":
            self.sae.mean.copy_(x.mean(0))
            self.sae.std.copy_(x.std(0).clamp(min=1e-5))
        elif self._params.normalize == "none":
            self.sae.std.fill_(x.square().mean().sqrt())
        x = self.sae.normalize(x).x
        self._variance = x.var(0, correction=0).mean()
        self.sae.pre_bias.copy_(geometric_median(x))
        directions = torch.randn(self.sae.decoder.shape, generator=generator)
        self.sae.decoder.copy_(directions)
        normalize_rows(self.sae.decoder)
        self.sae.encoder.copy_(self.sae.decoder)
        # k non-orthogonal rows overshoot: scale the encoder so that unit vectors are reconstructed at unit length.
        unit = torch.randn(256, self.sae.config.d_model, generator=generator).to(device())
        unit /= unit.norm(dim=1, keepdim=True)
        cut = self._params.architecture in ("batchtopk", "matryoshka", "jumprelu")
        latents = batch_top(self.sae, unit).latents if cut else self.sae.encode(unit + self.sae.pre_bias)
        centered = self.sae.decode(latents) - self.sae.pre_bias
        self.sae.encoder.div_(centered.norm(dim=1).mean())
        if cut:
            # So that k latents are active from the first step on: a threshold has a gradient only from latents within
            # the kernel's bandwidth.
            self.sae.threshold.fill_(batch_top(self.sae, x[: self._params.batch_size] - self.sae.pre_bias).least)

    def learn(self, x: Tensor) -> None:
        """One optimiser step, on activations [n, d_model]: this process's share of a batch."""
        x = self.sae.normalize(x).x
        latents, own = encode_to_train(self.sae, x, self._variance, self._sparsity_weight(), self._params.prefixes)
        l0 = self._count_firing(latents)
        error = x - self.sae.decode(latents)
        fvu, aux = error.square().mean() / self._variance, self._aux_loss(x, error.detach())
        (fvu + own + self._params.aux_weight * aux).backward()  # type: ignore[no-untyped-call]
        distributed.average(*(each.grad for each in self.sae.parameters() if each.grad is not None))
        remove_parallel_gradient(self.sae.decoder)
        for group in self._optimizer.param_groups:
            share = group["rate"] * learning_rate_share(self._params, self.step, self._steps)
            group["lr"] = self._params.learning_rate * share
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        normalize_rows(self.sae.decoder)
        if self._params.architecture == "jumprelu":
            self.sae.threshold.data.clamp_(min=0)
        self._update_average()
        self.step += 1
        if self.step % max(1, self._steps // CURVE_ROWS) == 0 or self.step == self._steps:
            self.curve.append(self._point(fvu.detach(), aux.detach(), l0))

    def finish(self) -> SparseAutoencoder:
        """The trained autoencoder, frozen; call `folded` on it."""
        if self._params.ema:
            self.sae.load_state_dict(self._average)
            normalize_rows(self.sae.decoder)
        return self.sae.requires_grad_(False)

    def shown(self) -> dict[str, str]:
        """Figures for the progress bar."""
        return {"fvu": f"{self.curve[-1].fvu:.4f}", "dead": f"{self.curve[-1].dead:.1%}"} if self.curve else {}

    def _aux_loss(self, x: Tensor, error: Tensor) -> Tensor:
        """AuxK: the dead latents reconstruct the remaining error, so that they get a gradient and revive."""
        seen = (self.step + 1) * self._params.batch_size
        if seen <= self._params.dead_tokens or not self._params.aux_weight:
            return x.new_zeros(())  # none can be dead yet: no look, for which a GPU would have to be waited for
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
        mean = distributed.average(error.mean(0))
        variance = distributed.average((error - mean).square().mean())
        # With an error of zero variance the loss is 0.
        return left.square().mean() / variance.masked_fill(variance == 0, torch.inf)

    @torch.no_grad()
    def _count_firing(self, latents: Latents) -> Tensor:
        """Count the tokens since each latent last fired. Returns the mean number of active latents per token, []."""
        firing = latents.values != 0
        self._tokens_since_fired += len(latents.indices) * runtime().world_size
        fired = torch.zeros_like(self._tokens_since_fired, dtype=torch.float32)
        fired.index_add_(0, latents.indices.flatten(), firing.flatten().float())
        self._tokens_since_fired.masked_fill_(distributed.average(fired) > 0, 0)
        return firing.sum() / len(latents.indices)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the moving average of the weights, with the bias correction of Adam."""
        if past := self._params.ema:
            share = (1 - past) / (1 - past ** (self.step + 1))
            for name, weight in self.sae.state_dict().items():
                self._average[name].lerp_(weight, share)

    def _sparsity_weight(self) -> float:
        """The sparsity weight of this step, which rises linearly from 0."""
        rise = self._params.sparsity_warmup_share * self._steps
        return (self._params.sparsity_weight or 0.0) * min(1.0, self.step / max(rise, 1.0))

    def _point(self, fvu: Tensor, aux: Tensor, l0: Tensor) -> SaeCurveRow:
        """The curve's row for this step, averaged over all processes."""
        dead = (self._tokens_since_fired > self._params.dead_tokens).float().mean()
        means = distributed.average(torch.stack([fvu, aux, l0]))
        mean_fvu, mean_aux, mean_l0 = means.tolist()
        return SaeCurveRow(self.step, self.step * self._params.batch_size, mean_fvu, mean_aux, float(dead), mean_l0)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "step": self.step,
            "sae": self.sae.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "variance": self._variance,
            "tokens_since_fired": self._tokens_since_fired,
            "average": self._average,
            "curve": [tuple(row) for row in self.curve],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state`."""
        self.step = state["step"]
        self.sae.load_state_dict(state["sae"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._variance.copy_(state["variance"])
        self._tokens_since_fired.copy_(state["tokens_since_fired"])
        for name, each in self._average.items():
            each.copy_(state["average"][name])
        self.curve = [SaeCurveRow(*row) for row in state["curve"]]


def learning_rate_share(params: SaeParams, step: int, steps: int) -> float:
    """Learning rate of a step (from 0) relative to its peak: linear warm-up, plateau, linear decay towards zero."""
    rise, fall = params.warmup_share * steps, params.decay_share * steps
    return min(1.0, (step + 1) / max(rise, 1.0), (steps - step) / max(fall, 1.0))


@torch.no_grad()
def geometric_median(x: Tensor, rounds: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point that minimises the sum of distances to the rows of `x` [n, d], by Weiszfeld's iteration: [d]."""
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
    """Remove from the gradient of unit rows the component parallel to each row, in place."""
    assert weight.grad is not None
    weight.grad -= (weight.grad * weight).sum(1, keepdim=True) * weight

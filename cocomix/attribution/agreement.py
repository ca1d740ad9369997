"""Agreement of the attribution scores with exact ablation, on a sample of validation positions.

    python -m cocomix.attribution.agreement                   # reads artifacts/ and params.yaml, prints a table
    python -m cocomix.attribution.agreement --positions 256 --json

Each scope has its own oracle: the loss minus the loss with a latent set to zero. All options use
`attribution.k_attr`, and all but `activation` use `attribution.sign`. The last position of a window has no next token
and is left out. Columns:

- rank: Spearman correlation of `strength` with the oracle's over the active latents of a position, averaged over
  positions
- overlap: share of the oracle's labels that the option also gives
- short: share of positions with fewer than k_attr labels
- entropy: entropy of the distribution of labels over concepts, in bits
- most frequent: the concept that is most often a label, and its share of the labels
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.attribution.ablation import ablation_scores
from cocomix.attribution.labelling import (
    LossGradient,
    Strongest,
    activation_scores,
    gradient_scores,
    integrated_scores,
    loss_gradient,
    strength,
    strongest,
    strongest_of_dictionary,
)
from cocomix.attribution.positions_apart import check_positions_apart
from cocomix.attribution.summary import frequencies
from cocomix.base.loading import load_base, micro_batch
from cocomix.params import AttributionParams, Scope, Sign, load
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.checked import whole_number
from cocomix.plumbing.distributed import stand_alone
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.origins import check_origins
from cocomix.plumbing.progress import progress
from cocomix.sae.autoencoder import Latents, SparseAutoencoder, load_sae
from cocomix.tokens.base_tokens import BaseTokens

ORACLE = "ablation"
PER_WINDOW = 16
"""Positions sampled per window."""


class ActiveLatents(NamedTuple):
    """The active latents of one position and their strengths, both [active]."""

    indices: NDArray[np.integer]
    strengths: NDArray[np.floating]


class Scored(NamedTuple):
    """Some positions' labels, latents and strengths by one attribution score."""

    labels: Strongest
    """[positions, k_attr]."""
    latents: Latents
    """[positions, width]."""
    strengths: Tensor
    """`strength` of the scores: [positions, width], in the order of `latents`."""

    def active(self) -> list[ActiveLatents]:
        """The active latents of each position."""
        columns = (self.latents.indices, self.strengths, self.latents.values != 0)
        return [ActiveLatents(i[on], s[on]) for i, s, on in zip(*(each.cpu().numpy() for each in columns), strict=True)]


class Agreement(NamedTuple):
    """A row of the table; the module's docstring defines the columns."""

    scope: str
    option: str
    rank: float
    overlap: float
    short: float
    entropy: float
    most_frequent: int
    most_frequent_share: float


def agreement(
    model: PreTrainedModel, sae: SparseAutoencoder, windows: Tensor, places: Tensor, params: AttributionParams
) -> list[Agreement]:
    """Compare every attribution score with the oracle of each scope; the oracle's own row comes first.

    Args:
        windows: token ids, int64 [windows, context].
        places: the positions of each window to compare, without the last one.

    Raises:
        UserError: when the base model does not support the scope next_token.
    """
    check_positions_apart(model, sae.config.layer, windows[:1])
    rows = []
    scopes = get_args(Scope)
    with progress("agreement", len(scopes) * len(windows) * len(places), "positions") as bar:
        for scope in scopes:
            parts: dict[str, list[Scored]] = {}
            for some in torch.split(windows, micro_batch(windows.shape[1])):
                for name, scored in _scored(model, sae, some, places, params, scope):
                    parts.setdefault(name, []).append(scored)
                bar.advance(len(some) * len(places))
            rows += [_compared(scope, name, each, parts[ORACLE], sae.config.concepts) for name, each in parts.items()]
    return rows


def _scored(
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    windows: Tensor,
    places: Tensor,
    params: AttributionParams,
    scope: Scope,
) -> Iterator[tuple[str, Scored]]:
    """Name and result of every attribution score at the sampled positions of some windows."""
    rows = (torch.arange(len(windows))[:, None] * windows.shape[1] + places).flatten().to(windows.device)
    k_attr, sign, layer = params.k_attr, params.sign, sae.config.layer

    def sampled(latents: Latents, scores: Tensor, sign: Sign) -> Scored:
        latents, scores = Latents(latents.indices[rows], latents.values[rows]), scores[rows]
        labels = strongest(sae.as_concepts(latents), scores, min(k_attr, scores.shape[1]), sign)
        missing = 0, k_attr - labels.concepts.shape[1]
        labels = Strongest(F.pad(labels.concepts, missing, value=-1), F.pad(labels.scores, missing))
        return Scored(labels, latents, strength(scores, sign))

    yield ORACLE, sampled(*ablation_scores(model, sae, windows, scope, places), sign)
    gradient = loss_gradient(model, windows, layer, scope)
    by_gradient = sampled(*gradient_scores(sae, gradient), sign)
    yield "gradient", by_gradient
    of_all = strongest_of_dictionary(sae, LossGradient(gradient.residual[rows], gradient.gradient[rows]), k_attr, sign)
    # An active latent has the same value before and after the selection.
    yield "gradient, pre_activation", by_gradient._replace(labels=of_all)
    yield "integrated", sampled(*integrated_scores(model, sae, windows, scope, params.integrated_steps), sign)
    yield "activation", sampled(*activation_scores(model, sae, windows), "released")


def _compared(scope: Scope, name: str, option: Sequence[Scored], oracle: Sequence[Scored], concepts: int) -> Agreement:
    given, exact = (torch.cat([part.labels.concepts for part in each]).cpu().numpy() for each in (option, oracle))
    shared = ((exact[:, :, None] == given[:, None]).any(2) & (exact >= 0)).sum()
    found = frequencies(np.bincount(given[given >= 0], minlength=concepts))
    return Agreement(
        scope=scope,
        option=name,
        rank=mean_correlation(option, oracle),
        overlap=float(shared / max(1, (exact >= 0).sum())),
        short=float((given[:, -1] < 0).mean()),
        entropy=found.entropy,
        most_frequent=found.most_frequent,
        most_frequent_share=found.most_frequent_share,
    )


def mean_correlation(option: Sequence[Scored], oracle: Sequence[Scored]) -> float:
    """Rank correlation over the active latents of a position, averaged over the positions that have one.

    Only latents active in both count: at the edge of the selection, rounding may make one active in one of them alone.
    """
    found = []
    rows = (chain.from_iterable(part.active() for part in each) for each in (option, oracle))
    for ours, exact in zip(*rows, strict=True):
        _, i, j = np.intersect1d(ours.indices, exact.indices, return_indices=True)
        if (correlation := spearman(ours.strengths[i], exact.strengths[j])) is not None:
            found.append(correlation)
    return float(np.mean(found)) if found else 0.0


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Spearman's rank correlation; ties share their mean rank. None: all values of one side are equal."""
    values = np.stack([a, b])
    ranks = (values[:, :, None] > values[:, None]).sum(2) + (values[:, :, None] == values[:, None]).sum(2) / 2
    centered = ranks - ranks.sum(1, keepdims=True) / max(1, len(a))
    norms = np.linalg.norm(centered, axis=1)
    return float(centered[0] @ centered[1] / norms.prod()) if norms.all() else None


def table(rows: Sequence[Agreement]) -> str:
    """Format the rows as a text table."""
    lines = [f"{'scope':11} {'option':25} {'rank':>5} {'overlap':>8} {'short':>6} {'entropy':>8}  most frequent"]
    lines += [
        f"{each.scope:11} {each.option:25} {each.rank:5.2f} {each.overlap:8.2f} {each.short:6.2f} "
        f"{each.entropy:8.2f}  {each.most_frequent} ({each.most_frequent_share:.1%})"
        for each in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read artifacts/, compare, print.

    Raises:
        UserError: when an artifact is missing or comes from another pipeline, or --positions is out of range.
    """
    stand_alone()
    parser = argparse.ArgumentParser(prog="python -m cocomix.attribution.agreement")
    parser.add_argument("--positions", type=whole_number, default=256, help=f"to compare, {PER_WINDOW} of a window")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the sample")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    asked = parser.parse_args(arguments)
    artifacts, params = Path("artifacts"), load().attribution
    tokens = BaseTokens(artifacts)
    base, trained = Artifact(artifacts / "base"), Artifact(artifacts / "sae")
    check_origins({"base": base, "sae": trained, **tokens.inputs})
    model, sae = load_base(base, tokens.context), load_sae(trained)
    if model.dtype != torch.float32:
        raise UserError("base.dtype: bf16: exact ablation needs fp32: bf16 rounds away the differences between losses")
    validation = tokens.windows("validation")
    per_window = min(PER_WINDOW, tokens.context - 1)
    count = -(-asked.positions // per_window)
    if not 0 < count <= len(validation):
        raise UserError(f"--positions: {asked.positions}; allowed: 1 to {len(validation) * per_window}")
    if asked.seed < 0:
        raise UserError(f"--seed: {asked.seed}; allowed: 0 or more")
    generator = np.random.default_rng(asked.seed)
    chosen = np.sort(generator.choice(len(validation), count, replace=False))
    places = torch.from_numpy(np.sort(generator.choice(tokens.context - 1, per_window, replace=False)))
    ids = torch.from_numpy(validation[chosen].astype(np.int64)).to(model.device)
    rows = agreement(model, sae, ids, places, params)
    print("\n".join(json.dumps(each._asdict()) for each in rows) if asked.json else table(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

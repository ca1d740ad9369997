"""Stage `sae`: train the sparse autoencoder on the activations, or load a published one, and evaluate it."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cocomix.activations.store import ActivationStore
from cocomix.activations.stream import open_activations
from cocomix.base.loading import load_base
from cocomix.check.external import outside
from cocomix.params import ActivationsParams, Params, SaeParams, Site
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.device import device
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import ALSO, SparseAutoencoder
from cocomix.sae.formats import check_model, check_published, load_published
from cocomix.sae.learner import SaeCurveRow
from cocomix.sae.quality import duplicates, reconstruction, spliced_losses
from cocomix.sae.training import SaeTraining, Wanted, write_curve
from cocomix.tokens.base_tokens import BaseTokens
from stages.stage import ARTIFACTS, main, produce, to_json

MAIN = ""
"""Key, among the autoencoders trained in one pass, of the one whose latents are the concepts."""


def run(params: Params) -> None:
    """Make artifacts/sae."""
    activations, base = Artifact(ARTIFACTS / "activations"), Artifact(ARTIFACTS / "base")
    tokens = BaseTokens(ARTIFACTS)

    def compute(work: Work) -> Mapping[str, Any]:
        def store_of(site: str | None) -> ActivationStore:
            return open_activations(activations, site, tokens, partial(load_base, base, tokens.context))

        sections = {MAIN: params.sae, **params.sae.others()}
        stores = {site: store_of(site) for site in {each.site for each in sections.values()}}
        curves: dict[str, list[SaeCurveRow]] = {}
        if params.sae.source == "train":
            training = SaeTraining([Wanted(stores[each.site], each) for each in sections.values()], work.scratch)
            training.run()
            learners = dict(zip(sections, training.learners, strict=True))
            trained = {name: each.finish() for name, each in learners.items()}
            curves = {name: each.curve for name, each in learners.items()}
        else:
            trained = {MAIN: _published(params.sae, stores[params.sae.site], base)}
            work.confirm_inputs()
        if runtime().rank == 0:
            model, measured = load_base(base, tokens.context), {}
            stored = ActivationsParams.model_validate(activations.manifest.params)
            with work.write_folder() as folder:
                for name, sae in trained.items():
                    kept = work.scratch / f"measured-{name}"
                    measured[name] = _measured(sae, stores[sections[name].site], model, tokens, stored, kept)
                    own = folder if name == MAIN else folder / ALSO / name
                    own.mkdir(parents=True, exist_ok=True)
                    sae.folded().save(own)
            for name, found in measured.items():
                _check_explains(found["fvu"], sections[name], name, stores[sections[name].site].site)
            metrics = measured.pop(MAIN)
            (work.side / "metrics.json").write_bytes(to_json({**metrics, "also": measured}))
            write_curve(work.side / "curve.csv", curves.get(MAIN, []))
        config = trained[MAIN].folded().config
        return {**config.model_dump(), "concepts": config.concepts}

    produce(
        "sae",
        ARTIFACTS / "sae",
        {"activations": activations, "base": base, **tokens.inputs, **outside("sae.published.path", params)},
        params.sae.model_dump(),
        compute,
        {"metrics.json": Path("metrics/sae.json"), "curve.csv": Path("plots/sae.csv")},
    )


def _measured(
    sae: SparseAutoencoder,
    store: ActivationStore,
    model: PreTrainedModel,
    tokens: BaseTokens,
    stored: ActivationsParams,
    kept: Path,
) -> dict[str, Any]:
    """Quality of an autoencoder: its entry in metrics/sae.json."""
    held_out = reconstruction(sae, store, kept.with_name(f"{kept.name}-reconstruction"))
    losses = spliced_losses(sae, model, tokens, held_out.mean, stored, kept.with_name(f"{kept.name}-splice"))
    return {
        "fvu": held_out.fvu,
        "fvu_raw": held_out.fvu_raw,
        "l0": held_out.l0,
        "dead_share": float((held_out.rates == 0).float().mean()),
        "dense_share": held_out.dense_share,
        "firing": held_out.firing,
        "duplicates": duplicates(sae),
        **losses._asdict(),
        "loss_recovered": losses.loss_recovered,
        "kl_recovered": losses.kl_recovered,
    }


def _check_explains(fvu: float, section: SaeParams, name: str, site: Site) -> None:
    """Check that the autoencoder `name` reconstructs better than the mean activation."""
    if fvu < 1:
        return
    if section.source == "published":
        which, why = f"sae.published: {section.published.path}", f"it must be of this base model, at {site}"
    else:
        which = f"sae.{ALSO}.{name}" if name else "sae"
        why = f"learning_rate ({section.learning_rate:g}) may be too large, or the training too short"
    raise UserError(f"{which} explains nothing of these activations (variance unexplained: {fvu:.2f}): {why}")


def _published(section: SaeParams, store: ActivationStore, base: Artifact) -> SparseAutoencoder:
    """Load the published autoencoder; check it against the parameters and the activations."""
    path = str(section.published.path)
    if not Path(path).exists():
        raise UserError(f"sae.published.path: {path}: no such file or folder")
    sae = load_published(Path(path), section.published.format, store.site, section.k)
    taken = base.manifest.params
    check_model(section, taken["pretrained"] if taken.get("source") == "pretrained" else None)
    check_published(sae.config, section, store.site, store.d_model)
    return sae.requires_grad_(False).to(device())


if __name__ == "__main__":
    main(run)

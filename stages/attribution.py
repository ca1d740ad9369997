"""Stage `attribution`: label every training and validation position with its concepts."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cocomix.attribution.build import make_labels
from cocomix.attribution.labels import Labels, label_type, read_labels
from cocomix.attribution.summary import summarise
from cocomix.base.loading import load_base
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import load_sae
from cocomix.tokens.base_tokens import BaseTokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/concepts; the processes share the work."""
    base, trained = Artifact(ARTIFACTS / "base"), Artifact(ARTIFACTS / "sae")
    tokens = BaseTokens(ARTIFACTS)

    def compute(work: Work) -> Mapping[str, Any]:
        sae = load_sae(trained)
        layers = sae.config.layer if params.attribution.score == "activation" else None  # the loss needs all
        facts = make_labels(work, load_base(base, tokens.context, layers), sae, tokens, params.attribution)
        if runtime().rank == 0:
            concepts, k_attr = sae.config.concepts, params.attribution.k_attr

            def train_labels() -> Iterator[Labels]:
                for name in sorted(each for each in work.records() if each.startswith("train-")):
                    yield from read_labels(work.files / name, facts["context"], k_attr, label_type(concepts))

            summary = summarise(train_labels(), concepts)
            (work.side / "metrics.json").write_bytes(to_json(asdict(summary)))
            if not tokens.shared:
                facts["unlabelled_share"] = summary.unlabelled_share
        return facts

    produce(
        "attribution",
        ARTIFACTS / "concepts",
        {"base": base, "sae": trained, **tokens.inputs},
        params.attribution.model_dump(),
        compute,
        {"metrics.json": Path("metrics/attribution.json")},
    )


if __name__ == "__main__":
    main(run)

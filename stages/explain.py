"""Stage `explain`: the atlas of concepts."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cocomix.artifact import Artifact, Work, digests_of
from cocomix.base import load_base
from cocomix.explain.making import make_atlas
from cocomix.params import ExplainParams, Params
from cocomix.sae.autoencoder import load_sae
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/atlas, by as many processes as there are."""
    base, trained = Artifact(ARTIFACTS / "base"), Artifact(ARTIFACTS / "sae")
    tokens = Tokens(ARTIFACTS / "tokens")

    def compute(work: Work) -> Mapping[str, Any]:
        sae = load_sae(trained)
        summary = make_atlas(work, load_base(base, tokens.context), sae, tokens, params.explain)
        if summary:
            (work.side / "metrics.json").write_bytes(to_json(asdict(summary)))
        return {"concepts": sae.config.concepts, "context": tokens.context}

    produce(
        "explain",
        ARTIFACTS / "atlas",
        {"base": base, "sae": trained, "tokens": tokens.artifact, **_label_model_files(params.explain)},
        params.explain.model_dump(),
        compute,
        {"metrics.json": Path("metrics/explain.json")},
    )


def _label_model_files(section: ExplainParams) -> dict[str, str]:
    """Digests of the files of a label model in a folder, by name; the hub's is known by its revision."""
    folder = Path(section.model.name or "")
    if section.labeller == "tokens" or not folder.is_dir():
        return {}
    return {f"label model {name}": digest for name, digest in digests_of(folder).items()}


if __name__ == "__main__":
    main(run, shared=True)

"""Stage `corpus`: read documents, remove duplicates, and split them into train, validation and test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.corpus.build import build, fingerprint
from cocomix.corpus.splits import SPLITS
from cocomix.params import Params
from cocomix.plumbing.artifact import Work
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/corpus."""

    def compute(work: Work) -> Mapping[str, Any]:
        summary = build(params.corpus, work.scratch)
        for split in SPLITS:
            name = f"{split}.parquet"
            with work.write(name) as pending:
                (work.scratch / name).replace(pending.path)
                pending.rows = summary.splits[split].documents
        sizes = {str(split): summary.splits[split]._asdict() for split in SPLITS}
        metrics = sizes | {"sources": summary.sources, "dropped": dict(summary.dropped)}
        (work.side / "metrics.json").write_bytes(to_json(metrics))
        section = params.corpus
        hub = section.hub.model_dump(include={"dataset", "config", "revision"}) if section.source == "hub" else {}
        return {"splits": sizes, "origin": {"source": section.source, **hub}}

    produce(
        "corpus",
        ARTIFACTS / "corpus",
        {"source": fingerprint(params.corpus)},
        params.corpus.model_dump(mode="json"),
        compute,
        side={"metrics.json": Path("metrics/corpus.json")},
    )


if __name__ == "__main__":
    main(run)

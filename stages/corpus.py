"""Stage `corpus`: read documents, remove duplicates, and split them into train, validation and test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.check.external import corpus_inputs, outside
from cocomix.corpus.build import CorpusSummary, build
from cocomix.corpus.contamination import write_benchmarks
from cocomix.corpus.splits import SPLITS
from cocomix.params import CorpusParams, Params
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.progress import say
from cocomix.plumbing.runtime import runtime
from stages.stage import ARTIFACTS, main, produce, to_json

FEW_DOCUMENTS = 30


def run(params: Params) -> None:
    """Make artifacts/corpus."""

    def compute(work: Work) -> Mapping[str, Any]:
        summary = build(params.corpus, work.scratch, _benchmarks(params, work))
        if summary is None:
            return {}
        for split in SPLITS:
            name = f"{split}.parquet"
            with work.write(name) as pending:
                (work.scratch / name).replace(pending.path)
                pending.rows = summary.splits[split].documents
        sizes = {str(split): summary.splits[split]._asdict() for split in SPLITS}
        _say_what_is_little(params.corpus, summary)
        dropped = {"dropped": summary.dropped, "limited": summary.limited}
        metrics = sizes | {"sources": summary.sources} | dropped
        if summary.contaminated is not None:
            metrics["contaminated"] = {name: each._asdict() for name, each in summary.contaminated.items()}
        (work.side / "metrics.json").write_bytes(to_json(metrics))
        section = params.corpus
        hub = section.hub.model_dump(include={"dataset", "config", "revision"}) if section.source == "hub" else {}
        return {"splits": sizes, "origin": {"source": section.source, **hub}}

    produce(
        "corpus",
        ARTIFACTS / "corpus",
        corpus_inputs(params),
        params.corpus.used,
        compute,
        side={"metrics.json": Path("metrics/corpus.json")},
        side_only={"decontaminate": params.corpus.decontaminate, **outside("corpus.decontaminate", params)},
    )


def _benchmarks(params: Params, work: Work) -> Path | None:
    """The file of the texts to evaluate on, written by the first process; None: they are not looked for."""
    if params.corpus.decontaminate is None:
        return None
    from cocomix.evaluation.benchmarks import benchmark_texts

    path = work.scratch / "benchmarks.npz"
    if runtime().rank == 0 and not path.exists():
        say("corpus: reading the texts of evaluate.tasks and evaluate.corpora")
        unconfirmed = work.scratch / "unconfirmed.npz"
        write_benchmarks(benchmark_texts(params), unconfirmed)
        work.confirm_inputs()
        unconfirmed.replace(path)
    distributed.barrier()
    return distributed.see(path)


def _say_what_is_little(section: CorpusParams, summary: CorpusSummary) -> None:
    kept = sum(size.bytes for size in summary.splits.values()) / 1e6
    key, most = section.limit
    if summary.limited and section.source != "installed-docs":
        say(f"corpus: kept {kept:.3g} MB; the rest was left out, because {key} is {most / 1e6:g}")
    for split in ("validation", "test"):
        documents = summary.splits[split].documents
        if documents < FEW_DOCUMENTS and section.source != "installed-docs":
            say(
                f"corpus: the {split} split has {documents} documents: intervals over so few say little; raise "
                f"corpus.{split}_share, or give text in more documents"
            )


if __name__ == "__main__":
    main(run, by_torchrun=True)

"""Clean text with datatrove for `corpus.source: files`: a quality filter, then near-duplicates across all files.

    python3 -m venv .venv-datatrove
    .venv-datatrove/bin/pip install -r examples/clean_text.txt
    .venv-datatrove/bin/python examples/clean_text.py raw clean

It reads the folder `raw` (.jsonl, plain or compressed, with a field `text`) and writes `clean/text/*.jsonl.gz`. Then
set `corpus.source: files` and `corpus.files.paths: [clean/text/*.jsonl.gz]`. datatrove has its own environment, because
it needs other versions of libraries than the pipeline. A killed run continues with the tasks that are not complete.
Complete tasks never run again: remove `clean` after a change of `raw`, of the filters or of `--tasks`.

More filters go into `filters`, such as `LanguageFilter(["en"])`, which downloads its model. On a Slurm cluster, replace
`LocalPipelineExecutor` by `SlurmPipelineExecutor`, which also takes the time and the partition of the jobs.
"""

import argparse
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def clean(raw: Path, out: Path, tasks: int, workers: int) -> None:
    """Write the documents of `raw` that pass the filters, and one of each cluster of near-duplicates, to `out/text`.

    Args:
        tasks: in how many parts the files are divided; the same in every run.
        workers: processes on this machine.
    """
    filters = [GopherQualityFilter()]
    filtered, signatures, buckets, removed = (
        str(out / each) for each in ("filtered", "signatures", "buckets", "removed")
    )
    minhash = MinhashConfig()  # FineWeb's: 14 buckets of 8 hashes of 5 words, for a similarity of about 0.75

    def run(name: str, pipeline: list[PipelineStep], count: int = tasks) -> None:
        LocalPipelineExecutor(pipeline, tasks=count, workers=workers, logging_dir=str(out / "logs" / name)).run()

    run("filter", [JsonlReader(str(raw)), *filters, JsonlWriter(filtered)])
    run("signatures", [JsonlReader(filtered), MinhashDedupSignature(signatures, config=minhash)])
    run("buckets", [MinhashDedupBuckets(signatures, buckets, config=minhash)], minhash.num_buckets)
    run("clusters", [MinhashDedupCluster(buckets, removed, config=minhash)], 1)
    run("text", [JsonlReader(filtered), MinhashDedupFilter(removed), JsonlWriter(str(out / "text"))])


def main() -> None:
    """Run it as a command."""
    parser = argparse.ArgumentParser(description="Clean a folder of .jsonl files with datatrove.")
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", type=int, default=16, help="parts of the work; the same in every run (default: 16)")
    parser.add_argument("--workers", type=int, default=-1, help="processes (default: one per task)")
    options = parser.parse_args()
    clean(options.raw, options.out, options.tasks, options.workers)


if __name__ == "__main__":
    main()

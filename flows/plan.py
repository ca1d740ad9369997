"""Show what would run and why, and what it needs: `python -m flows.plan [--preset NAME] [--gpu H100] [--gpus 8]`.

Nothing runs, and nothing is written except digests of large external files (`cocomix/plumbing/digests.py`). Missing or
truncated files of artifacts are reported; altered bytes only with `--verify`.

Needs are computed from the parameters (`cocomix/shapes/planning/`). A stage's time is its operations over a rate. On
this machine, the rate is that of the longest finished stage of its kind, else of the longest training, else assumed. On
GPUs of a named kind, it is an assumed share of their peak: they share the windows of a stage, on one node or several.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from cocomix.check.preflight import init_config, preflight
from cocomix.corpus.files import find_files
from cocomix.params import FILE, Params, reads_distribution
from cocomix.plumbing.checked import mapping, parse
from cocomix.plumbing.errors import UserError, suggestion
from cocomix.plumbing.gpus import GPUS, Gpu, gpu_named
from cocomix.plumbing.runtime import runtime
from cocomix.report.wording import duration, si
from cocomix.shapes.planning.corpus import CorpusSize, estimated_corpus, measured_corpus
from cocomix.shapes.planning.needs import LIBRARIES, StageNeeds
from cocomix.shapes.planning.stages import stage_needs
from flows import dag
from flows.arguments import count
from flows.overrides import nested
from flows.preset import content_of, sections, with_values
from flows.verify import REMEDY, cut_short, verify

UTILISATION = 0.3
"""Assumed, not measured, share of a GPU's peak."""
CORE_FLOPS = 88e9
"""Operations per second of a CPU core in training: docs/log.md, 15 (NTP, two cores of an AMD EPYC, AVX512-BF16)."""
CORE_TEXT = {"installed-docs": 0.4e6, "files": 10e6, "hub": 10e6, "tokenize": 3e6}
"""Bytes of text per second and core. installed-docs: docs/log.md, 15; tokenize: measured; the others are guesses."""
SHORTEST = 30.0
"""Minimum seconds of a finished stage for its rate to count: shorter ones spend most of the time starting."""
START = 6.0
"""Seconds that any stage takes to start on a CPU."""
CHECKPOINT_RATE = 0.44e9
"""Bytes of a checkpoint per second: docs/log.md, 52, by processor time. A slower disk takes longer."""
HASH_RATE = 0.59e9
"""Bytes per second of MD5 on a core, with which DVC hashes what a stage has written: docs/log.md, 85."""


Runs = Literal["yes", "no", "perhaps"]
"""perhaps: it reads only keys of a file that an earlier stage will write, and they may stay the same."""


class Why(NamedTuple):
    """Whether a stage runs, and why."""

    runs: Runs
    reasons: tuple[str, ...]


class Rate(NamedTuple):
    """Speed of this machine."""

    per_second: float
    """Operations or bytes of text."""
    source: str


@dataclass(frozen=True)
class Planned:
    """A stage, and its needs if it runs. Sizes are in bytes."""

    stage: str
    runs: Runs
    why: tuple[str, ...]
    flops: float
    disk: float
    """Size of its artifact."""
    scratch: float
    """Additional disk space while it runs."""
    memory: float
    """Memory of one process, on this machine."""
    seconds: float
    """Time on this machine."""
    writing_seconds: float
    """The part of all times in which a training waits for its checkpoints, and DVC hashes the artifact."""
    rate: str
    """Source of the rate behind `seconds`."""
    gpu_seconds: float
    """Time on the GPUs of the named kind; equal to `seconds` for a stage that does not use a GPU."""
    gpu_windows: int | None
    """Windows of a training step that fit into a GPU's memory at a time (COCOMIX_MICRO_BATCH); 0: the model does not
    fit; None: all of the GPU's share, or the stage is no training."""
    sharded_windows: int | None
    """The same with the model sharded over the GPUs (COCOMIX_SHARDING=fsdp)."""


class Gpus(NamedTuple):
    """The GPUs to estimate for."""

    name: str
    kind: Gpu
    number: int = 1

    def __str__(self) -> str:
        return f"{self.number if self.number > 1 else 'one'} {self.name}"


ONE_H100 = Gpus("H100", GPUS["H100"])


def plan(preset: str | None = None, gpus: Gpus = ONE_H100) -> list[Planned]:
    """Plan all stages, in topological order.

    Args:
        preset: plan with its parameters instead of those of params.yaml.

    Raises:
        UserError: for an unknown preset, or invalid parameters.
    """
    content, params = _asked(preset)
    stages = dag.read_dag(content)
    why = reasons(stages)
    text = _text(params, up_to_date=why["corpus"].runs == why["tokenize"].runs == "no")
    needs = stage_needs(params, text, init_config(params))
    rates = _measured_rates(stages, content)
    return [
        _planned(stage, why[name], needs.get(name, StageNeeds()), params, rates, gpus) for name, stage in stages.items()
    ]


def refusal(preset: str | None = None) -> str | None:
    """The error with which a run would be refused at its start, or None."""
    try:
        preflight(_asked(preset)[1])
    except UserError as error:
        return str(error)
    return None


def unread(preset: str | None = None) -> str | None:
    """A line that says that the base model would be sampled for no listed method, or None."""
    params = _asked(preset)[1]
    if params.distribution.draws is None or any(map(reads_distribution, params.pretrain.listed.values())):
        return None
    return "No method of pretrain.methods reads the draws of distribution; distribution.draws: null makes none."


def _asked(preset: str | None) -> tuple[bytes, Params]:
    content = content_of(preset) if preset else sections(FILE)
    return content, parse(Params, mapping(content, str(FILE)), str(FILE))


def reasons(stages: Mapping[str, dag.Stage]) -> dict[str, Why]:
    """Whether and why each stage runs, taking into account what runs before it.

    DVC skips a stage whose inputs are recomputed with identical bytes; the plan does not predict that.
    """
    found: dict[str, Why] = {}
    for stage in stages.values():
        before = [need for need in stage.needs if found[need].runs != "no" and stages[need].writes is None]
        surely = [need for need in before if found[need].runs == "yes" and need not in stage.reads_keys_of]
        if stage.reasons:
            never = "never run" in stage.reasons
            after = () if never or not before else (f"after {', '.join(before)}",)
            found[stage.name] = Why("yes", stage.reasons + after)
        elif surely:
            found[stage.name] = Why("yes", (f"after {', '.join(surely)}",))
        elif before:
            found[stage.name] = Why("perhaps", (f"if {' or '.join(before)} gives it something new",))
        else:
            found[stage.name] = Why("no", ())
    return found


def _text(params: Params, *, up_to_date: bool) -> CorpusSize:
    if up_to_date:
        return measured_corpus(
            *(json.loads(Path(f"metrics/{name}.json").read_bytes()) for name in ("corpus", "tokenize"))
        )
    files = find_files(params.corpus.files.paths) if params.corpus.source == "files" else None
    return estimated_corpus(params, None if files is None else sum(each.stat().st_size for each in files))


def _measured_rates(stages: Mapping[str, dag.Stage], content: bytes) -> dict[str, Rate]:
    """Rates by kind of stage, each from the longest stage that finished here and took at least `SHORTEST`."""
    ran_with = [nested(stage.ran_with) for stage in stages.values()]
    try:
        params = parse(Params, mapping(with_values(content, ran_with, "dvc.lock"), "dvc.lock"), "dvc.lock")
        needs = stage_needs(params, _text(params, up_to_date=True), init_config(params))
    except (UserError, FileNotFoundError, json.JSONDecodeError):  # an older pipeline, nothing has run yet, or a merge
        return {}
    found: dict[str, tuple[float, Rate]] = {}
    for stage in stages.values():
        need = needs.get(stage.name, StageNeeds())  # of the last run, perhaps with other methods
        work = need.flops or need.text
        seconds = max((_seconds(path) for path in stage.metrics), default=0.0)
        kind = _kind(stage.name)
        if stage.ran_with and work and seconds > max(SHORTEST, found.get(kind, (0.0,))[0]):
            found[kind] = seconds, Rate(work / seconds, f"measured: {stage.name}")
    trainings = [found[kind] for kind in ("base", "pretrain") if kind in found]
    if trainings:
        found["training"] = max(trainings)
    return {kind: rate for kind, (_, rate) in found.items()}


def _seconds(metrics: Path) -> float:
    """Duration of the stage that wrote this metrics file; 0 if it is not recorded, as in the middle of git's merge."""
    try:
        return json.loads(metrics.read_bytes()).get("usage", {}).get("seconds", 0.0)
    except (FileNotFoundError, json.JSONDecodeError):
        return 0.0


def _kind(stage: str) -> str:
    return stage.partition("@")[0]


def _planned(
    stage: dag.Stage, why: Why, need: StageNeeds, params: Params, rates: Mapping[str, Rate], gpus: Gpus
) -> Planned:
    kind = _kind(stage.name)
    rate = rates.get(kind) or (rates.get("training") if need.flops else None) or _assumed_rate(kind, params)
    writing = need.checkpoints / CHECKPOINT_RATE + need.disk / HASH_RATE
    seconds = START + (need.flops or need.text) / rate.per_second + writing
    training = params.base.training if kind == "base" else params.pretrain.training
    busy = training.batch_size / _share(training.batch_size, gpus) if need.window_memory else gpus.number
    return Planned(
        stage=stage.name,
        runs=why.runs,
        why=why.reasons,
        flops=need.flops,
        disk=need.disk,
        scratch=need.scratch,
        memory=need.memory + need.window_memory * _windows_at_a_time(training.batch_size),
        seconds=seconds,
        writing_seconds=writing,
        rate=rate.source,
        gpu_seconds=START + need.flops / (UTILISATION * gpus.kind.peak * busy) + writing if stage.gpu else seconds,
        gpu_windows=_fitting(need, gpus, training.batch_size),
        sharded_windows=_fitting(need, gpus, training.batch_size, shards=gpus.number),
    )


def _assumed_rate(kind: str, params: Params) -> Rate:
    cores = runtime().cores
    if kind in ("corpus", "tokenize", "base_tokens"):
        per_core = CORE_TEXT[params.corpus.source if kind == "corpus" else "tokenize"]
        return Rate(per_core * cores, f"assumed: {si(per_core, 'B')}/s a core, {cores} cores")
    if (names := _gpus_here()) and (gpu := gpu_named(names[0])):
        return Rate(
            UTILISATION * gpu.peak * len(names), f"assumed: {UTILISATION:.0%} of the peak of {len(names)} {names[0]}"
        )
    return Rate(CORE_FLOPS * cores, f"assumed: {si(CORE_FLOPS, 'FLOP')}/s a core, {cores} cores")


def _gpus_here() -> list[str]:
    """Names of the GPUs that stages will use on this machine."""
    if not shutil.which("nvidia-smi") or not (runtime().device == "auto" or runtime().device.startswith("cuda")):
        return []
    from flows.gpu import gpus  # imports Prefect, which takes seconds

    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[: len(gpus())] if done.returncode == 0 else []


def _windows_at_a_time(batch_size: int) -> int:
    """Windows per forward pass of a training step in one process on this machine."""
    asked, processes = runtime().micro_batch, runtime().processes
    if asked != "auto":
        return min(asked, batch_size)
    return math.ceil(batch_size / (processes if processes != "auto" else len(_gpus_here()) or runtime().cores))


def _share(batch_size: int, gpus: Gpus) -> int:
    """Windows of a training step on the GPU that has most of them."""
    return math.ceil(batch_size / gpus.number)


def _fitting(need: StageNeeds, gpus: Gpus, batch_size: int, shards: int = 1) -> int | None:
    """Windows that fit into a GPU's memory; None: all of its share of the batch."""
    share = _share(batch_size, gpus)
    free = 0.9 * gpus.kind.memory - (need.memory - LIBRARIES) / shards
    fitting = max(0, int(free / need.window_memory)) if need.window_memory else share
    return fitting if fitting < share else None


def show(planned: list[Planned], gpus: Gpus, console: Console) -> None:
    """Print why each stage runs, a table of needs, and totals."""
    running = [each for each in planned if each.runs != "no"]
    for why in dict.fromkeys(each.why for each in running):
        stages = ", ".join(each.stage for each in running if each.why == why)
        console.print(f"{stages}: {'; '.join(why)}", soft_wrap=True)
    if up_to_date := [each.stage for each in planned if each.runs == "no"]:
        console.print(f"Up to date: {', '.join(up_to_date)}.", soft_wrap=True)
    if not running:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    for name in ("disk", "memory", "operations", "here", str(gpus)):
        table.add_column(name, justify="right", no_wrap=True)
    for each in running:
        operations = si(each.flops, "FLOP") if each.flops else ""
        times = _time(each.seconds), _time(each.gpu_seconds)
        table.add_row(each.stage, si(each.disk, "B"), si(each.memory, "B"), operations, *times)
    console.print("", table, "")
    needed = sum(each.disk for each in running) + max(each.scratch for each in running)
    free = shutil.disk_usage(".").free
    seconds, gpu_seconds = (sum(getattr(each, key) for each in running) for key in ("seconds", "gpu_seconds"))
    perhaps = sum(each.runs == "perhaps" for each in running)
    unsure = f", {perhaps} of them perhaps" if perhaps else ""
    console.print(
        f"{len(running)} of {len(planned)} stages would run{unsure}: {_time(seconds)} here, {_time(gpu_seconds)} with "
        f"{gpus} at {UTILISATION:.0%} of the peak (assumed)."
    )
    writing = sum(each.writing_seconds for each in running)
    console.print(f"{_time(writing)} of either are for checkpoints and DVC's hashes, which more GPUs do not shorten.")
    enough = "." if needed <= free else ": TOO LITTLE."
    console.print(f"Disk: {si(needed, 'B')} at most, work in progress included; {si(free, 'B')} are free here{enough}")
    for rate in dict.fromkeys(each.rate for each in running):
        kinds = dict.fromkeys(_kind(each.stage) for each in running if each.rate == rate)
        console.print(f"Rate here, {', '.join(kinds)}: {rate}.")
    most, there = max(running, key=lambda each: each.memory), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if most.memory > there:
        console.print(
            f"Memory: {most.stage} would take {si(most.memory, 'B')} a process; {si(there, 'B')} are here: "
            "a lower COCOMIX_MICRO_BATCH takes less."
        )
    for each in running:
        if line := _fit(each, gpus):
            console.print(line)


def _fit(planned: Planned, gpus: Gpus) -> str:
    """The settings with which a training fits into the GPUs; empty: any."""
    most, sharded = planned.gpu_windows, planned.sharded_windows
    if most is None:
        return ""
    if most:
        return f"{planned.stage} on {gpus}: COCOMIX_MICRO_BATCH={most} at most."
    if sharded == 0:
        return f"{planned.stage} does not fit into {gpus}: more of them, with COCOMIX_SHARDING=fsdp."
    at_most = "" if sharded is None else f" and COCOMIX_MICRO_BATCH={sharded} at most"
    return f"{planned.stage} does not fit into one {gpus.name}: on {gpus}, COCOMIX_SHARDING=fsdp{at_most}."


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.plan", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", help="plan with the parameters of a preset, leaving params.yaml as it is")
    parser.add_argument("--gpu", default="H100", help=f"a kind of GPU to estimate for: {', '.join(GPUS)}")
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help="how many share each stage")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--verify", action="store_true", help="first read everything, as python -m flows.verify")
    given = parser.parse_args()
    try:
        kind = gpu_named(given.gpu)
        if kind is None:
            raise UserError(f"--gpu {given.gpu}: not known; {suggestion(given.gpu, GPUS)}")
        gpus = Gpus(given.gpu, kind, given.gpus)
        planned, refused = plan(given.preset, gpus), refusal(given.preset)
        damaged = list(map(str, verify())) if given.verify else cut_short()
    except UserError as error:
        sys.exit(f"error: {error}")
    if given.json:
        stages = [asdict(each) for each in planned]
        found = {"gpu": given.gpu, "gpus": given.gpus, "stages": stages, "damaged": damaged, "refused": refused}
        print(json.dumps(found, indent=2))
    else:
        show(planned, gpus, Console())
        if line := unread(given.preset):
            print(line)
    trouble = ["damaged:", *damaged, REMEDY] if damaged else []
    if refused:
        trouble.append(f"error: refused at the start: {refused}")
    if trouble:
        sys.exit("\n".join(trouble))


if __name__ == "__main__":
    main()

"""Train and evaluate under several settings of the parameters, and compare them: `python -m flows.sweep`.

    python -m flows.sweep weights pretrain.cocomix.concept_weight=0.1,0.3,1.0 --methods cocomix --seeds 0 1 2
    python -m flows.sweep sweeps/ablations.yaml --methods cocomix --seeds 0 1 2

The settings are the grid of all values given as `key=value,value`, or the named ones of a file (`name: {pretrain: ...}`
with only what differs), or each of the file's at each point of the grid. Under each, DVC brings `evaluate` of every
method and seed, and what it needs, up to date; what was made before, it takes from its cache.

Results are added to metrics/sweep/NAME.json one by one, and the same command goes on after them: a run whose parameters
are those of a result there is not run again. In the end the project's folder is as it was, params.yaml included.

The table holds validation losses only: what is chosen by a sweep must not be chosen on the test split.
"""

import argparse
import copy
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML, YAMLError

from cocomix.artifact import write_atomically
from cocomix.checked import parse, read_yaml
from cocomix.errors import UserError
from cocomix.params import FILE, Params
from cocomix.report.efficiency import equal_flops, loss_at, spread
from cocomix.report.facts import read_run, run_files
from cocomix.report.tuning import SWEEPS, SweepRun, decisive_digest, read_sweep
from cocomix.report.wording import duration, over_seeds, si, table
from cocomix.sources import digest_of_sources
from flows.dag import plan
from flows.preset import merge, sections, with_values
from flows.reproduce import reproduce
from flows.workspace import kept


class Setting(NamedTuple):
    """Values that differ from params.yaml."""

    name: str
    values: Mapping[str, Any]
    """Nested, as in params.yaml."""


class Task(NamedTuple):
    """One model to train and evaluate under a setting."""

    setting: Setting
    method: str
    seed: int
    params: bytes
    """The content of params.yaml."""
    digest: str
    """Of the parameters that can decide the result."""


def settings(file: Path | None, grid: Sequence[str]) -> list[Setting]:
    """The settings of a file, if one is given, at all points of a grid.

    Args:
        grid: `key=value,value`, with dots between sections and keys; values are YAML, lists among them.

    Raises:
        UserError: when the file or a value cannot be read.
    """
    found = [Setting("", {})]
    if file:
        found = [Setting(str(name), values or {}) for name, values in read_yaml(file).items()]
        if wrong := next((each.name for each in found if not isinstance(each.values, Mapping)), None):
            raise UserError(f"{file}: {wrong}: must be a section of 'key: value', as in {FILE}")
    for axis in grid:
        key, equals, text = axis.partition("=")
        try:
            values = YAML(typ="safe").load(f"[{text}]")
        except (YAMLError, ValueError):  # the latter: 2020-99-99
            values = None
        if not (key and equals and values):
            raise UserError(f"{axis}: must be key=value,value, such as pretrain.cocomix.concept_weight=0.1,0.3")
        found = [_with(each, key, value) for each in found for value in values]
    if unclear := next((each.name for each in found if not each.name.isprintable()), None):
        raise UserError(f"setting {unclear}: the name must be one line of printable characters")
    return found


def tasks(chosen: Sequence[Setting], methods: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Task]:
    """All models to train, checked.

    Args:
        methods: none: those of the setting, or of params.yaml.
        seeds: likewise.

    Raises:
        UserError: when a setting is not valid.
    """
    shipped, found = sections(FILE), []
    for setting in chosen:
        items = {name: list(each) for name, each in (("methods", methods), ("seeds", seeds)) if each}
        source = f"setting {setting.name or '(params.yaml)'}"
        content = with_values(shipped, [setting.values, {"pretrain": items}], source)
        params = parse(Params, YAML(typ="safe").load(content), source)
        digest = decisive_digest(params)
        found += [
            Task(setting, method, seed, content, digest)
            for method in params.pretrain.methods
            for seed in params.pretrain.seeds
        ]
    return found


def sweep(name: str, asked: Sequence[Task], write_params: Callable[[bytes], None]) -> dict[str, str]:
    """Run what is not yet in the results file, and add it there.

    Returns:
        What went wrong, by task.
    """
    done = read(name)
    code, failed = _digest_of_code(), {}
    if outdated := {each.setting for task in asked if (each := _result_of(task, done)) and each.code != code}:
        listed = ", ".join(sorted(outdated)) or FILE
        print(f"{_path(name)}: the code has changed since {listed}; remove the file to run all again", file=sys.stderr)
    left = [task for task in asked if _result_of(task, done) is None]
    for number, task in enumerate(left, start=1):
        title = " ".join(filter(None, [task.setting.name, task.method, f"seed {task.seed}"]))
        print(f"[{number}/{len(left)}] {title}", flush=True)
        write_params(task.params)
        try:
            _bring_up_to_date(f"evaluate@{task.method}-{task.seed}")
            if FILE.read_bytes() != task.params:
                raise UserError(f"{FILE} was edited meanwhile: the result does not count")
            done = [each for each in done if _key(each) != (task.setting.name, task.method, task.seed)]
            done.append(_collect(task, code))
            write_atomically(_path(name), _to_json(done))
        except UserError as error:
            failed[title] = str(error)
            print(f"failed: {error}", flush=True)
    return failed


def read(name: str) -> list[SweepRun]:
    """The results of a sweep so far.

    Raises:
        UserError: when the file is damaged.
    """
    return read_sweep(_path(name)) if _path(name).exists() else []


def comparison(asked: Sequence[Task], done: Sequence[SweepRun]) -> str:
    """The table: one line for each setting and method, over its seeds.

    Beside the loss of the whole validation split is that of the learning curve after the most FLOPs that all spent.
    """
    groups: dict[tuple[str, str], list[SweepRun]] = {}
    for task in asked:
        if result := _result_of(task, done):
            groups.setdefault((task.setting.name, task.method), []).append(result)
    if not groups:
        return "nothing has been run yet"
    flops = equal_flops(each.learning_curve for results in groups.values() for each in results)
    at = f"after {si(flops, 'FLOP')}"
    rows = [["setting", "method", "seeds", "validation loss", at, "tokens", "training", "parameters (active)", "time"]]
    for (setting, method), results in groups.items():
        training = results[0].pretrain
        loss, seconds = (
            spread(values)
            for values in (
                [each.validation_loss for each in results],
                [each.pretrain["seconds"] for each in results],
            )
        )
        at_equal = loss_at([each.learning_curve for each in results], flops)
        stored, active = (si(training["parameters"][each]) for each in ("stored", "active"))
        rows.append(
            [
                setting or "params.yaml",
                method,
                " ".join(str(each.seed) for each in results),
                over_seeds(loss, ".4f"),
                over_seeds(at_equal, ".4f") if at_equal else "",
                si(training["tokens"]),
                si(training["flops"], "FLOP"),
                f"{stored} ({active})",
                duration(seconds.mean),
            ]
        )
    return table(rows)


def _with(setting: Setting, key: str, value: object) -> Setting:
    nested: object = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    values = copy.deepcopy(dict(setting.values))
    assert isinstance(nested, dict)
    merge(values, nested)
    return Setting(", ".join(filter(None, [setting.name, f"{key}={value}"])), values)


def _bring_up_to_date(target: str) -> None:
    outcomes: dict[str, str] = {}
    for stage in plan([target]):
        outcomes[stage.name] = "up to date"
        if stage.changed or any(outcomes[each] != "up to date" for each in stage.needs):
            result = reproduce(stage.name, lambda line: print(line, flush=True))
            if result.outcome == "failed":
                raise UserError(f"{stage.name}: {result.error}")
            outcomes[stage.name] = result.outcome


def _collect(task: Task, code: str) -> SweepRun:
    training, evaluation, *_ = run_files(task.method, task.seed)
    curve = read_run(task.method, task.seed).curve
    return SweepRun(
        setting=task.setting.name,
        values=dict(task.setting.values),
        method=task.method,
        seed=task.seed,
        params=task.digest,
        code=code,
        pretrain=json.loads(training.read_bytes()),
        evaluate=json.loads(evaluation.read_bytes()),
        curve={name: each.tolist() for name, each in curve._asdict().items()},
    )


def _result_of(task: Task, done: Sequence[SweepRun]) -> SweepRun | None:
    key = (task.setting.name, task.method, task.seed)
    return next((each for each in done if _key(each) == key and each.params == task.digest), None)


def _key(result: SweepRun) -> tuple[str, str, int]:
    return result.setting, result.method, result.seed


def _path(name: str) -> Path:
    return SWEEPS / f"{name}.json"


def _to_json(done: Sequence[SweepRun]) -> bytes:
    return (json.dumps([each.model_dump() for each in done], indent=1, ensure_ascii=False) + "\n").encode()


def _digest_of_code() -> str:
    programs = sorted(each for each in Path("stages").glob("*.py") if each.name != "report.py")
    return hashlib.sha256("".join(map(digest_of_sources, programs)).encode()).hexdigest()


def main() -> None:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", metavar="NAME|FILE.yaml", help="names the results; a file also holds settings")
    parser.add_argument("grid", nargs="*", metavar="KEY=VALUE,...", help="a point of the grid is one of each")
    parser.add_argument("--methods", nargs="+", help="as pretrain.methods of params.yaml, which is the default")
    parser.add_argument("--seeds", nargs="+", type=int, help="as pretrain.seeds, likewise")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    file = Path(given.sweep) if given.sweep.endswith((".yaml", ".yml")) else None
    name = Path(given.sweep).stem if file else given.sweep
    try:
        if not name.isprintable() or (not file and set(name) & set("=/")):
            raise UserError(f"{name}: no name of a sweep; the first argument is a name, or a file of settings")
        with kept() as write_params:
            asked = tasks(settings(file, given.grid), given.methods, given.seeds)
            failed = sweep(name, asked, write_params)
        print(f"\n{comparison(asked, read(name))}\n\nEach run: {_path(name)}")
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if failed:
        sys.exit("\n".join(["error:", *(f"  {title}: {error}" for title, error in failed.items())]))


if __name__ == "__main__":
    main()

"""Train and evaluate under several settings of the parameters, and compare them: `python -m flows.sweep`.

    python -m flows.sweep weights pretrain.cocomix.concept_weight=0.1,0.3,1.0 --methods cocomix --seeds 0 1 2
    python -m flows.sweep sweeps/ablations.yaml --methods cocomix --seeds 0 1 2

The settings are the grid of all values given as `key=value,value`, or the named ones of a file (`name: {pretrain: ...}`
with differences only), or each of the file's at each point of the grid. Under each setting, DVC brings `evaluate` of
every method and seed up to date, with all that it needs; earlier results come from its cache. With `--trainings` above
1, models of several settings train beside each other, in copies of the project's folder. A setting that does not fit
this machine, such as a file that is missing, is reported before any work; the others run. Settings that differ in
nothing that a method reads are named too: its models are equal.

Results are added to metrics/sweep/NAME.json one by one. The same command resumes after them: a run is skipped if a
result has the same parameters, and the files that they name are the same. At the end, the project's folder is as
before, params.yaml included.

The table holds validation losses only, because settings must not be chosen on the test split.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cocomix.check import external
from cocomix.check.preflight import preflight
from cocomix.params import FILE, Params, Seed
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.checked import mapping, parse, whole_number
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.sources import digest_of_sources, states
from cocomix.report.efficiency import equal_flops, loss_at, spread
from cocomix.report.facts import read_run, run_files
from cocomix.report.tuning import SWEEPS, SweepRun, decisive_outside, read_sweep
from cocomix.report.wording import duration, over_seeds, si, table
from flows import publish
from flows.copies import FOLDER, copy_for, leaves_the_folder, remove_finished, update
from flows.dag import Stage, read_dag, select, titled
from flows.owner import check_definition
from flows.pipeline import add_trainings, set_trainings
from flows.server import end_with_runner, run_here
from flows.settings import Task, alike, settings, tasks
from flows.tasks import bring_up_to_date
from flows.workspace import check_folder, kept


@flow(persist_result=False)
def sweep(
    name: str, grid: tuple[str, ...] = (), methods: tuple[str, ...] = (), seeds: tuple[Seed, ...] = ()
) -> State[None]:
    """Train and evaluate under several settings of the parameters, and compare them. `params.yaml` stays as it is.

    Args:
        name: What to call the results, or a file of settings that gives them its name: `sweeps/ablations.yaml`.
        grid: Values to try, such as `sae.k=16,32`; of several lines, all combinations.
        methods: None: those of the setting, or of `params.yaml`.
        seeds: None: those of the setting, or of `params.yaml`.
    """
    end_with_runner()
    say = get_run_logger().warning
    try:
        check_definition("flows.sweep.sweep")
        with kept(wait=True, say=say) as write_params:
            results, asked = _asked(name, grid, methods, seeds)
            asked = _with_outside(asked)
            failed = run(results, asked, write_params)
            compared = comparison(asked, finished_runs(results))
    except UserError as error:
        return Failed(message=str(error))
    publish.comparison(results, compared)
    print(f"\n{compared}\n\nEach run: {_path(results)}", flush=True)
    if failed:
        lines = [f"{len(failed)} of {len(asked)} failed:", *(f"  {title}: {error}" for title, error in failed.items())]
        return Failed(message="\n".join(lines))
    return Completed(message=str(_path(results)))


def run(name: str, asked: Sequence[Task], write_params: Callable[[bytes], None]) -> dict[str, str]:
    """Run, within a flow, the tasks that are not yet in the results file, and add their results.

    Returns:
        Error messages of failed tasks, by title.

    Raises:
        UserError: when a person has edited params.yaml or the code before the last setting began.
    """
    log = get_run_logger()
    done = finished_runs(name)
    files, code = states(), _digest_of_code()
    failed = _refused([task for task in asked if _result_of(task, done) is None])
    if outdated := {each.setting for task in asked if (each := _result_of(task, done)) and each.code != code}:
        listed = ", ".join(sorted(outdated)) or FILE
        log.warning(f"{_path(name)}: the code has changed since {listed}; remove the file to run all again")
    for line in alike(asked):
        log.warning(line)

    def is_edited() -> bool:
        return states() != files and _digest_of_code() != code

    def begin(content: bytes) -> None:
        if is_edited():
            raise UserError("the code was edited while the sweep was at work; the same command goes on")
        write_params(content)

    def collect(task: Task, folder: Path) -> None:
        nonlocal done
        if (folder / FILE).read_bytes() != task.content:
            raise UserError(f"{FILE} was edited meanwhile: the result does not count")
        if folder == Path() and is_edited():
            raise UserError("the code was edited since this sweep began: the result does not count")
        done = [each for each in done if _key(each) != (task.setting.name, task.method, task.seed)]
        done.append(_collect(task, folder, code))
        write_atomically(_path(name), _to_json(done))
        publish.comparison(name, comparison(asked, done))

    publish.comparison(name, comparison(asked, done))
    left = [task for task in asked if _result_of(task, done) is None and task.title not in failed]
    groups = [list(group) for _, group in groupby(left, attrgetter("setting.name"))]
    if _runs_beside(name, asked, left):
        log.info(f"{len(asked) - len(left)} of {len(asked)} models are done; {runtime().trainings} at a time")
        failed |= _run_beside(name, groups, begin, collect)
        groups = []
    for number, group in enumerate(groups, 1):
        finished = sum(_result_of(task, done) is not None for task in asked)
        setting = group[0].setting.name or FILE
        log.info(f"[{number}/{len(groups)}] {setting}: {finished} of {len(asked)} models are done")
        failed |= _run_setting(group, begin, collect)
    remove_finished(FOLDER.glob("*/"))
    return failed


def _runs_beside(name: str, asked: Sequence[Task], left: Sequence[Task]) -> bool:
    """Whether models run in copies of the folder: also the last ones, whose unfinished work may be in a copy."""
    if any(leaves_the_folder(_params(each).model_dump()) for each in {task.content for task in left}):
        return False
    several = len({task.setting.name for task in asked}) > 1
    return (several and runtime().trainings > 1) or any(copy_for(name, each.setting.name).exists() for each in left)


def _refused(left: Sequence[Task]) -> dict[str, str]:
    """Check settings against this machine before any work.

    Returns:
        Error messages of tasks whose setting is refused, by title.
    """
    errors = dict[bytes, str]()
    for content in dict.fromkeys(task.content for task in left):
        try:
            preflight(_params(content))
        except UserError as error:
            errors[content] = str(error)
    return _logged({task.title: errors[task.content] for task in left if task.content in errors})


def _with_outside(asked: Sequence[Task]) -> list[Task]:
    """The tasks with `outside`, where that can be read; for the others, `_refused` says why it cannot."""
    found = dict[bytes, dict[str, str | None]]()
    for content in dict.fromkeys(task.content for task in asked):
        with suppress(UserError):
            found[content] = decisive_outside(external.digests(_params(content)))
    return [task._replace(outside=found.get(task.content)) for task in asked]


def _params(content: bytes) -> Params:
    return parse(Params, mapping(content, str(FILE)), str(FILE))


def _logged(failed: dict[str, str]) -> dict[str, str]:
    """The same error messages, after logging them."""
    for title, message in failed.items():
        get_run_logger().error(f"failed: {title}: {message}")
    return failed


def _run_setting(
    left: Sequence[Task], begin: Callable[[bytes], None], collect: Callable[[Task, Path], None]
) -> dict[str, str]:
    """Run tasks of one setting in the project's folder, beside each other where `runtime().trainings` allows it.

    Args:
        begin: called with the content of params.yaml, which it writes.
        collect: called with each task that is done, and the folder of its results.

    Returns:
        Error messages of failed tasks, by title.

    Raises:
        UserError: from `begin`.
    """
    begin(left[0].content)
    try:
        return _run_stages(_stages(left), {_evaluation(task): (task, Path()) for task in left}, collect)
    except UserError as error:
        return _logged({task.title: str(error) for task in left})


def _run_beside(
    name: str,
    settings: Sequence[Sequence[Task]],
    begin: Callable[[bytes], None],
    collect: Callable[[Task, Path], None],
) -> dict[str, str]:
    """Run tasks of several settings beside each other: see `_run_setting`.

    First, the stages that all models of a setting share run in the project's folder, setting after setting. The models
    then train and are evaluated in a copy of the folder for each setting. Edits of the project's folder do not matter
    to them.
    """
    failed, waiting = dict[str, str](), dict[Path, set[str]]()
    nodes, wanted = list[Stage](), dict[str, tuple[Task, Path]]()

    def collect_in_copy(task: Task, folder: Path) -> None:
        collect(task, folder)
        waiting[folder].remove(task.title)
        if not waiting[folder]:
            remove_finished([folder])

    for left in settings:
        begin(left[0].content)
        try:
            stages = _stages(left)
            stopped = bring_up_to_date(each for each in stages if "@" not in each.name).failed
        except UserError as error:
            stopped = {"": str(error)}
        if stopped:
            failed |= _logged(dict.fromkeys((task.title for task in left), next(iter(stopped.values()))))
            continue
        folder = copy_for(name, left[0].setting.name)
        update(folder, left[0].content)
        begin(left[0].content)  # again: a person may have edited what the copy was made of
        waiting[folder] = {task.title for task in left}
        # DVC decides what changes: the flags of `stages` are from before the shared stages ran.
        nodes += [replace(each, folder=folder, changed=True) for each in stages if "@" in each.name]
        wanted |= {_evaluation(task): (task, folder) for task in left}
    return failed | _run_stages(nodes, wanted, collect_in_copy)


def _run_stages(
    stages: Iterable[Stage], wanted: Mapping[str, tuple[Task, Path]], collect: Callable[[Task, Path], None]
) -> dict[str, str]:
    """Run stages, and collect the result of each of the tasks `wanted`, by the title of its evaluation.

    Returns:
        Error messages of failed tasks, by title.
    """
    failed: dict[str, str] = {}

    def ended(title: str) -> None:
        if title in wanted:
            try:
                collect(*wanted[title])
            except UserError as error:
                failed[title] = str(error)

    failed |= bring_up_to_date(stages, ended).failed
    return _logged({task.title: failed[title] for title, (task, _) in wanted.items() if title in failed})


def _stages(left: Sequence[Task]) -> list[Stage]:
    """The stages of tasks of one setting, in their order: each model is evaluated before the next ones are trained."""
    dag = read_dag()
    names = [f"evaluate@{task.method}-{task.seed}" for task in left]
    nodes = {node.name: node for name in names for node in select(dag, [name])}
    return [replace(node, setting=left[0].setting.name) for node in nodes.values()]


def _evaluation(task: Task) -> str:
    """The title of a task's last stage."""
    return titled(f"evaluate@{task.method}-{task.seed}", task.setting.name)


def finished_runs(name: str) -> list[SweepRun]:
    """The results of a sweep so far.

    Raises:
        UserError: when the file is damaged.
    """
    return read_sweep(_path(name)) if _path(name).exists() else []


def comparison(asked: Sequence[Task], done: Sequence[SweepRun]) -> str:
    """The table: one line per setting and method, over its seeds.

    Beside the loss on the whole validation split, it has the difference from the first line's for the same seeds, and
    the loss on the learning curve after the largest number of FLOPs that all runs reached. The difference has a digit
    more than the losses.
    """
    groups: dict[tuple[str, str], list[SweepRun]] = {}
    for task in asked:
        if result := _result_of(task, done):
            groups.setdefault((task.setting.name, task.method), []).append(result)
    if not groups:
        return "nothing has been run yet"
    flops = equal_flops(each.learning_curve for results in groups.values() for each in results)
    names = ["setting", "method", "seeds", "validation loss", "above the first", f"after {si(flops, 'FLOP')}", "tokens"]
    rows = [[*names, "training", "parameters (active)", "time"]]
    first = {each.seed: each.validation_loss for each in next(iter(groups.values()))}
    for (setting, method), results in groups.items():
        training = results[0].pretrain
        above = [each.validation_loss - first[each.seed] for each in results if each.seed in first]
        at_equal = loss_at([each.learning_curve for each in results], flops)
        stored, active = (si(training["parameters"][each]) for each in ("stored", "active"))
        rows.append(
            [
                setting or "params.yaml",
                method,
                " ".join(str(each.seed) for each in results),
                over_seeds(spread([each.validation_loss for each in results]), ".4f"),
                over_seeds(spread(above), "+.5f") if above else "",
                over_seeds(at_equal, ".4f") if at_equal else "",
                si(training["tokens"]),
                si(training["flops"], "FLOP"),
                f"{stored} ({active})",
                duration(fmean(each.pretrain["seconds"] for each in results)),
            ]
        )
    return table(rows)


def _collect(task: Task, folder: Path, code: str) -> SweepRun:
    training, evaluation, *_ = run_files(task.method, task.seed, folder)
    curve, noted = read_run(task.method, task.seed, folder).curve, external.noted(folder)
    return SweepRun(
        setting=task.setting.name,
        values=dict(task.setting.values),
        method=task.method,
        seed=task.seed,
        params=task.params,
        outside=noted and decisive_outside(noted),
        code=code,
        pretrain=json.loads(training.read_bytes()),
        evaluate=json.loads(evaluation.read_bytes()),
        curve={name: each.tolist() for name, each in curve._asdict().items()},
    )


def _result_of(task: Task, done: Sequence[SweepRun]) -> SweepRun | None:
    key = (task.setting.name, task.method, task.seed)
    return next(
        (
            each
            for each in done
            if _key(each) == key
            and each.params == task.params
            and (None in (each.outside, task.outside) or each.outside == task.outside)
        ),
        None,
    )


def _key(result: SweepRun) -> tuple[str, str, int]:
    return result.setting, result.method, result.seed


def _path(name: str) -> Path:
    return SWEEPS / f"{name}.json"


def _to_json(done: Sequence[SweepRun]) -> bytes:
    return (json.dumps([each.model_dump() for each in done], indent=1, ensure_ascii=False) + "\n").encode()


def _digest_of_code() -> str:
    programs = sorted(each for each in Path("stages").glob("*.py") if each.name != "report.py")
    return hashlib.sha256("".join(map(digest_of_sources, programs)).encode()).hexdigest()


def _asked(name: str, grid: Sequence[str], methods: Sequence[str], seeds: Sequence[Seed]) -> tuple[str, list[Task]]:
    """The name of the results, and the models to train."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else None
    results = file.stem if file else name
    if (
        not results.isprintable()
        or results != results.strip()
        or results.startswith((".", "-"))
        or not 0 < len(results.encode()) < 200
        or (not file and set(results) & set("=/"))
    ):
        raise UserError(f"{name}: no name of a sweep; it must be a name, or a file of settings")
    if file and not file.resolve().is_relative_to(Path.cwd()):
        raise UserError(f"{name}: must lie in this folder")  # otherwise a run from the UI could read any file
    return results, tasks(settings(file, grid), methods, seeds)


def main() -> None:
    """Run the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME|FILE.yaml", help="names the results; a file also holds settings")
    parser.add_argument("grid", nargs="*", metavar="KEY=VALUE,...", help="a point of the grid is one of each")
    parser.add_argument("--methods", nargs="+", default=[], help="as pretrain.methods of params.yaml, the default")
    parser.add_argument("--seeds", nargs="+", type=whole_number, default=[], help="as pretrain.seeds, likewise")
    add_trainings(parser)
    given = parser.parse_args()
    trainings = vars(given).pop("trainings")
    try:
        check_folder()
        set_trainings(trainings)
        _asked(**vars(given))  # reports errors before a server starts
    except UserError as error:
        sys.exit(f"error: {error}")
    run_here(lambda: sweep(**vars(given), return_state=True))


if __name__ == "__main__":
    main()

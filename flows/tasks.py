"""The stages of dvc.yaml as Prefect tasks: in the order of the DAG, several at a time where they are independent."""

import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from random import uniform
from threading import Event
from typing import Any, NamedTuple

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed

from cocomix.plumbing.runtime import runtime
from flows import publish
from flows.dag import Stage
from flows.gpu import hold
from flows.reproduce import Result, Stopped, reproduce
from flows.run_cache import remember
from flows.shares import Share, shares, whole

UP_TO_DATE = "Up to date"
FIRST_MICRO_BATCH = 8
"""Windows per forward pass in the first retry after the stage's own choice ran out of memory."""
RETRY_SECONDS = (2, 4, 8, 16)
"""Delays before the retries of a stage that was busy or killed; each grows by up to half as much at random."""


@task(task_run_name="{node.title}", cache_policy=NO_CACHE, persist_result=False)
def stage(
    node: Stage,
    changed: bool,
    share: Share,
    end: Event,
) -> State[None]:
    """Bring one stage up to date.

    Its state is Completed, Restored (from DVC's run cache), Up to date, Failed, or Cancelled. Busy (another DVC
    holds a resource) and Killed are failures that remained after all retries.

    Args:
        changed: whether the stage may have something to do; only then DVC is asked, which decides.
        share: its part of the machine.
        end: when it is set, the stage is cancelled.
    """
    if not changed:
        return Completed(name=UP_TO_DATE, message="nothing changed")
    try:
        result = _run_with_retries(node, share, end)
    except Stopped:
        return Cancelled()
    if result.outcome in ("ran", "restored"):
        publish.metrics(node.name, [node.folder / each for each in node.metrics])
    match result.outcome:
        case "ran":
            return Completed()
        case "restored":
            return Completed(name="Restored", message="from DVC's run cache")
        case "up to date":
            return Completed(name=UP_TO_DATE, message="nothing changed")
        case "failed":
            name = {"busy": "Busy", "killed": "Killed"}.get(result.cause, "Failed")
            return Failed(name=name, message=result.error)


def _run_with_retries(node: Stage, share: Share, end: Event) -> Result:
    """Run a stage on its GPUs; retry it with growing delays while another holds what it needs, or if it was killed.

    Prefect's own retries would sleep on after `end` is set.

    Raises:
        Stopped: after `end` is set.
    """

    def run() -> Result:
        with hold(share.gpus, end) if node.gpu and share.gpus else nullcontext():
            return _run(node, share.environment, end)

    for least in RETRY_SECONDS:
        result = run()
        if result.cause not in ("busy", "killed"):
            return result
        delay = least * uniform(1, 1.5)
        get_run_logger().warning(f"{result.cause}: {result.error}; once more in {delay:.0f} s")
        if end.wait(delay):
            raise Stopped
    return run()


def _run(node: Stage, environment: Mapping[str, str], end: Event) -> Result:
    """Run a stage; after each out-of-memory error, retry with half as many windows per forward pass."""
    log = get_run_logger()
    progress = publish.StageProgress(node.name)
    windows = runtime().micro_batch
    if node.folder != Path() and (logs := runtime().tensorboard):  # they outlive the copy
        environment = {**environment, "COCOMIX_TENSORBOARD": str((logs / node.folder.name).absolute())}

    def note(line: str) -> None:
        log.info(line)
        progress.read(line)

    def run() -> Result:
        return reproduce(node.name, note, environment, end, node.folder)

    while (result := run()).cause == "out of memory" and windows != 1:
        windows = FIRST_MICRO_BATCH if windows == "auto" else windows // 2
        environment = {**environment, "COCOMIX_MICRO_BATCH": str(windows)}
        log.warning(f"out of memory; once more with COCOMIX_MICRO_BATCH={windows}")
    if result.outcome == "ran":
        progress.finish()
    return result


class Ended(NamedTuple):
    """How stages have ended."""

    states: dict[str, State[Any]]
    """The state of each stage that was run, by its title."""
    failed: dict[str, str]
    """The reason, by the title of each stage that failed, or was not run because one that it needs failed."""


def bring_up_to_date(nodes: Iterable[Stage], ended: Callable[[str], None] = lambda _: None) -> Ended:
    """Run stages within a flow, each as a task.

    Stages of a matrix, which are trainings and evaluations, run `runtime().trainings` at a time. Any other stage runs
    alone and has the whole machine. If a stage fails, those that need it are not run; the others are.

    Args:
        nodes: stages, each after those that it needs, as `select` returns them; of those that can start, the first do.
        ended: called with the title of each stage once it is up to date.
    """
    remember()
    run, end = Ended({}, {}), Event()
    chosen = {node.title: node for node in nodes}
    order = TopologicalSorter({title: chosen.keys() & node.needed_titles for title, node in chosen.items()})
    order.prepare()
    ready = set[str]()
    running: dict[PrefectFuture[Any], tuple[str, list[Share]]] = {}
    finished = SimpleQueue[PrefectFuture[Any]]()
    unsure = set[str]()  # stages that ran: their dependents may have changed
    free = shares()
    all_shares = len(free)
    if all_shares < (asked := runtime().trainings):
        get_run_logger().info(f"{all_shares} of {asked} trainings run at a time, one for each GPU")
    # Each stage has a thread. The main thread waits here, where signals, and so a cancellation, reach it.
    try:
        while True:
            ready |= set(order.get_ready())
            for title in [each for each in chosen if each in ready]:
                node = chosen[title]
                size = 1 if "@" in node.name else all_shares
                if size > len(free):
                    continue
                ready.remove(title)
                taken, free = free[:size], free[size:]
                changed = node.changed or not unsure.isdisjoint(node.needed_titles)
                share = taken[0] if size == 1 else whole()
                inputs = [run.states[each] for each in node.needed_titles if each in run.states]
                future = stage.submit(node, changed, share, end, wait_for=inputs, return_state=False)
                running[future] = title, taken
                future.add_done_callback(finished.put)
            if not running:
                break
            title, taken = running.pop(future := finished.get())
            free += taken
            future.wait()
            run.states[title] = state = future.state
            if state.name != UP_TO_DATE and not chosen[title].as_foreseen():
                unsure.add(title)
            if state.is_completed():
                order.done(title)
                ended(title)
            else:
                run.failed[title] = f"{chosen[title].name}: {state.message}"
    except BaseException as error:
        end.set()
        for future in running:
            future.wait()
        if isinstance(error, KeyboardInterrupt):
            raise TerminationSignal(signal.SIGTERM) from None  # otherwise Prefect would report Crashed
        raise
    for title, node in chosen.items():
        if title not in run.states:
            run.failed[title] = next(run.failed[each] for each in node.needed_titles if each in run.failed)
            get_run_logger().warning(f"{title}: not run, because of {run.failed[title]}")
    if unsure:
        remember()
    return run

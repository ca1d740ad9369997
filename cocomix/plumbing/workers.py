"""Worker processes for text processing, which holds the GIL."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TypeVar

from cocomix.plumbing import interrupt, sources
from cocomix.plumbing.errors import WorkerDiedError
from cocomix.plumbing.runtime import runtime

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map `function` over the items, in order, in `runtime().workers` processes, or its share of the machine's cores.

    Only a few items and results are in memory at a time, so memory does not grow with their number.

    Raises:
        WorkerDiedError: when a worker was killed.
        Interrupted: when it was killed by a signal that this process received, too.
    """
    workers = runtime().workers
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = max(1, runtime().cores // local) if workers == "auto" else workers
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if count == 1 or len(first) == 1:  # starting a process would take longer
        yield from map(function, items)
        return
    # Spawned, not forked: a fork copies the locks in the thread pools of arrow and tokenizers in any state.
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start, initargs=(sources.HELD,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_apply, function, item))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        # Workers do not ignore SIGTERM: the pool uses it to end the others when one has died.
        interrupt.check()
        raise WorkerDiedError(
            "a worker process has died (out of memory? a smaller COCOMIX_WORKERS needs less); what it had finished is "
            "kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[Item], Result], item: Item) -> Result:
    _check_code()
    return function(item)


@cache
def _check_code() -> None:
    """Check once, after the imports, that this process has loaded the code that its parent runs."""
    sources.check()


def _start(held: Mapping[Path, sources.SourceFile]) -> None:
    """Leave Ctrl-C to the parent; exit when the parent ends, even if it is killed."""
    sources.HELD.update(held)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

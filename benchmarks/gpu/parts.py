"""Run parts of a benchmark one after another, each in a process of its own and in its share of the time.

A part is a module with a function `measurements(setting)`: functions by name, in the order of their importance, each of
which returns numbers, texts, and mappings and lists of them. What one of them finds is on the disk before the next one
begins. After an error, which may have left a GPU unusable, a new process goes on with the next one. At a part's end of
time its process is killed. What a part does not use, the parts after it have.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.gpu.setting import Setting

FORK = multiprocessing.get_context("fork")
"""The libraries are imported once, here; CUDA is not, which no forked process could use then."""

BEGIN = "begin"
"""Stands for a part's measurements until their names are known."""

Measurement = Callable[[], object]
Found = dict[str, Any]
"""Of a part: `seconds`, `results` and `errors` by name, and `left_out`, the names for which there was no time."""


class Part(NamedTuple):
    """A part of a benchmark."""

    name: str
    """Of its module in this folder."""
    share: float
    """Of the time, relative to the other parts' shares."""


def run_parts(
    parts: Sequence[Part], setting: Callable[[], Setting], seconds: float, changed: Callable[[dict[str, Found]], None]
) -> None:
    """Run the parts.

    Args:
        setting: makes what a part is given, in the part's process: on a GPU it may use CUDA.
        seconds: of all parts together.
        changed: called after each measurement with what was found so far, by part.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # by which torch.cuda.is_available() does not begin CUDA here
    report: dict[str, Found] = {}
    shares = sum(part.share for part in parts)
    end = time.monotonic()
    for part in parts:
        end += seconds * part.share / shares
        found: Found = {"seconds": 0.0, "results": {}, "errors": {}, "left_out": []}
        report[part.name] = found
        started = time.monotonic()
        for _ in _measured(part, setting, end, found):
            found["seconds"] = round(time.monotonic() - started, 1)
            changed(report)


def _measured(part: Part, setting: Callable[[], Setting], end: float, found: Found) -> Iterator[None]:
    """Add to what was found, until all measurements are done or the time is over; yields at each change."""
    try:
        importlib.import_module(f"benchmarks.gpu.{part.name}")
    except Exception as error:
        found["errors"]["import"] = line(error)
        yield
        return
    waiting, is_known = [BEGIN], False
    while waiting:
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_measure, args=(part, setting, waiting if is_known else None, there))
        process.start()
        assert process.pid
        _lead_group(process.pid)
        there.close()
        try:
            while (left := end - time.monotonic()) > 0 and here.poll(left):
                name, kind, content = here.recv()
                if kind == "names":
                    waiting, is_known = content, True
                else:
                    waiting.remove(name)
                    found[kind][name] = content
                    yield
        except EOFError:
            process.join()
            if process.exitcode:
                found["errors"][waiting.pop(0)] = f"the process ended with {process.exitcode}"
                yield
        else:
            found["left_out"] = waiting
            yield
            return
        finally:
            _kill(process.pid)
            process.join()


def _measure(part: Part, setting: Callable[[], Setting], only: list[str] | None, pipe: Connection) -> None:
    """In the part's process: measure, up to the first error."""
    _lead_group(0)
    module = importlib.import_module(f"benchmarks.gpu.{part.name}")
    name = BEGIN
    try:
        measurements: dict[str, Measurement] = module.measurements(setting())
        names = list(measurements) if only is None else only
        pipe.send(("", "names", names))
        for name in names:
            pipe.send((name, "results", rounded(measurements[name]())))
    except Exception as error:
        pipe.send((name, "errors", line(error)))
    pipe.close()
    sys.stderr.flush()
    os._exit(0)


def _lead_group(process: int) -> None:
    """Make a process the leader of a group, so that what it starts ends with it; 0: this process.

    Parent and child both call it: the parent may want to kill the group before the child has come to this line.
    """
    with suppress(OSError):
        os.setpgid(process, process)


def _kill(process: int | None) -> None:
    """Kill a process with all that it has started."""
    assert process is not None
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def line(error: BaseException) -> str:
    """An error in one line, and where it was raised."""
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{os.path.relpath(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]} ({where})"


def rounded(result: object) -> object:
    """A result with four digits of each number that is not whole."""
    if isinstance(result, float):
        return float(f"{result:.4g}")
    if isinstance(result, dict):
        return {str(name): rounded(each) for name, each in result.items()}
    if isinstance(result, list | tuple):
        return [rounded(each) for each in result]
    return result

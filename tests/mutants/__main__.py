"""A mutation run: of small faults put into the core's code one at a time, how many do the tests notice?

    python -m tests.mutants --seed 0 --count 200              # draws 200 faults, prints each one's fate, then the share
    python -m tests.mutants --seed 0 --count 200 --only 7 31  # the same draw, of which two are tried

Each fault is written into a copy of the tree, where a forked child runs the tests that reach its line, the quickest
first; the parent has imported torch and transformers already, so that a child starts in a second or two. A fault is
noticed when a test fails, or when the tests take ten times as long as without it. It takes an hour on a core.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import pytest

from tests.mutants.drawing import Mutant, mutants, plain
from tests.mutants.reach import Choice, Reached, Tracing

ROOT = Path(__file__).parents[2]
ROOMS = {
    "cocomix/modeling": ("tests/modeling", "tests/training", "tests/predictions"),
    "cocomix/training": ("tests/training",),
    "cocomix/attribution": ("tests/attribution",),
    "cocomix/distribution": ("tests/distribution",),
    "cocomix/sae": ("tests/sae",),
    "cocomix/plumbing/artifact.py": ("tests/plumbing/test_artifact.py", "tests/plumbing/test_origins.py"),
    "cocomix/plumbing/checkpoint.py": ("tests/plumbing/test_checkpoint.py", "tests/training/test_loop.py"),
}
"""What gets faults, and the tests of it."""
LEFT_OUT = "test_processes or compile or without_the_package or any_sequence_of_crashes or second_copy"
"""Tests that start programs or a compiler, or take long: others notice nearly all that they would."""
PRELOADED = (
    "hypothesis pyarrow.parquet pydantic safetensors.torch tokenizers torch.distributed.fsdp "
    "torch.distributed.checkpoint.state_dict transformers.generation transformers.models.gpt2.modeling_gpt2"
)
LEAST_SECONDS, PATIENCE = 30, 10
"""How long the tests of a fault may take: at least, and over what they take without it."""


class Tests:
    """A copy of the tree, in which one module at a time has a fault."""

    def __init__(self, folder: Path) -> None:
        self._tree, self._log, self._scratch = folder / "tree", folder / "log", folder / "scratch"
        left_out = shutil.ignore_patterns(".*", "__pycache__", "artifacts", "metrics", "plots", "shared")
        shutil.copytree(ROOT, self._tree, ignore=left_out)
        self._writes = 0
        for path in modules():
            self._write(path, plain(path))
        self._reached: dict[str, dict[str, Reached]] = {}

    def notice(self, mutant: Mutant) -> str | None:
        """What notices a fault: the test that fails, or that all together take too long; none: nothing does."""
        name = str(mutant.path.relative_to(ROOT))
        room = next(each for each in ROOMS if name.startswith(each))
        if room not in self._reached:
            self._reached[room] = self._trace(room)
        tests = self._reached[room]
        wanted = f"{self._tree / name}:{mutant.plain_line or ''}"
        names = [test for test in tests if tests[test].reaches(wanted)]
        if not names:
            if mutant.plain_line:
                return None
            names = list(tests)  # of a module that is done once it is imported
        names.sort(key=lambda test: tests[test].seconds)
        self._write(mutant.path, mutant.source)
        limit = max(LEAST_SECONDS, PATIENCE * sum(tests[test].seconds for test in names))
        status = self._status(["-x", *dict.fromkeys(test.partition("::")[0] for test in names)], Choice(names), limit)
        self._write(mutant.path, plain(mutant.path))
        if status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(self._log.read_text()[-3000:])
        if status is None:
            return "time"
        failed = re.search("^(?:FAILED|ERROR) (.*?)(?: - .*)?$", self._log.read_text(), re.MULTILINE)
        return None if status == 0 else failed[1] if failed else "import"

    def _trace(self, room: str) -> dict[str, Reached]:
        """What each test of a room reaches."""
        found = self._log.with_name("reached.json")
        if self._status(["-k", f"not ({LEFT_OUT})", *ROOMS[room]], Tracing(self._tree / room, found), limit=3600):
            sys.exit(f"the tests of {room} fail without a fault:\n{self._log.read_text()[-3000:]}")
        return {test: Reached(*each) for test, each in json.loads(found.read_text()).items()}

    def _write(self, path: Path, source: str) -> None:
        """Replace a module; the time of its file is another each time, so that no stale bytecode is taken."""
        target = self._tree / path.relative_to(ROOT)
        target.write_text(source)
        self._writes += 1
        os.utime(target, (self._writes, self._writes))

    def _status(self, arguments: list[str], plugin: object, limit: float) -> int | None:
        """The exit status of pytest in a forked child; none: it was not done after `limit` seconds."""
        child = os.fork()
        if not child:
            self._run(arguments, plugin)
        end = time.monotonic() + limit
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(ended[1])

    def _run(self, arguments: list[str], plugin: object) -> None:
        os.setsid()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self._tree)
        sys.path[0] = os.environ["PYTHONPATH"] = str(self._tree)
        for name in [each for each in sys.modules if each.partition(".")[0] == "tests"]:
            del sys.modules[name]
        options = ["-p", "no:cacheprovider", f"--basetemp={self._scratch}", "--tb=short", "--color=no"]
        os._exit(pytest.main([*options, *arguments], [plugin]))


def modules() -> list[Path]:
    """The files of the core."""
    return [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py")) or [ROOT / room]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="of the draw, from 1")
    asked = parser.parse_args()
    drawn = dict(enumerate(mutants(modules(), asked.seed, asked.count), start=1))
    chosen = asked.only or list(drawn)
    for name in PRELOADED.split():
        import_module(name)
    noticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tests = Tests(Path(folder))
        for number in chosen:
            mutant = drawn[number]
            by = tests.notice(mutant)
            noticed += by is not None
            print(f"{number:4} {mutant.path.relative_to(ROOT)}:{mutant.line}  {mutant.change}", flush=True)
            print(f"     {f'killed by {by}' if by else 'SURVIVES'}", flush=True)
    print(f"{noticed} of {len(chosen)} killed")


if __name__ == "__main__":
    main()

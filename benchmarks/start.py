"""CPU seconds of starting: of the commands for one sentence, and of each library that they import.

help                  `python -m cocomix --help`, which imports neither torch nor transformers
concepts, steer       the whole command for one sentence; it needs the artifacts of a finished pipeline
<a module>            its import, after those above it; the garbage collector is off, as in commands and stages

Each figure is a median. Of the modules, only the first and the last are ours: transformers imports the others.
`torch._dynamo` is torch's compiler, and imports distributed tensors and SymPy.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

from benchmarks import report

SENTENCE = "The function returns a list"
COMMANDS = {
    "help": ["--help"],
    "concepts": ["concepts", SENTENCE],
    "steer": ["steer", SENTENCE, "--edit", "0=2.5", "--tokens", "10"],
}
MODULES = [
    "cocomix.params",
    "torch",
    "torch._dynamo",
    "scipy.optimize",
    "accelerate",
    "transformers",
    "transformers.models",
    "transformers.modeling_utils",
    "cocomix.explore.commands",
]
IMPORT = """
import gc, importlib, json, sys, time
gc.disable()
seconds, before = {}, time.process_time()
for name in sys.argv[1:]:
    importlib.import_module(name)
    seconds[name], before = (now := time.process_time()) - before, now
print(json.dumps(seconds))
"""


def of_command(arguments: list[str]) -> float:
    """CPU seconds of `python -m cocomix` with some arguments."""
    before = _of_children()
    subprocess.run([sys.executable, "-m", "cocomix", *arguments], stdout=subprocess.DEVNULL, check=True)
    return _of_children() - before


def _of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_imports() -> dict[str, float]:
    """CPU seconds of the import of each module, in one new process."""
    command = [sys.executable, "-c", IMPORT, *MODULES]
    seconds: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=5)
    arguments, sys.argv[1:] = parser.parse_known_args()
    runs = [
        {name: of_command(each) for name, each in COMMANDS.items()} | of_imports() for _ in range(arguments.repeats)
    ]
    report("start", {name: statistics.median(run[name] for run in runs) for name in runs[0]})

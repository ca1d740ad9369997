"""Run the parts: `python -m benchmarks.gpu --minutes 8 --json`; see `parts.py`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import set_up
from benchmarks.gpu.parts import Found, Part, run_parts
from benchmarks.gpu.setting import TOY, Setting, sizes
from cocomix.plumbing.artifact import write_atomically

PARTS = [
    Part("machine", 1),
    Part("pipeline", 5),
    Part("kernels", 3),
    Part("training", 6),
    Part("compiled", 6),
    Part("published", 4),
    Part("attention", 1),
    Part("labels", 3),
    Part("autoencoder", 3),
    Part("evaluation", 2),
    Part("checkpoint", 5),
    Part("interruption", 2),
]
"""In the order of their importance, with their shares of the time."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}; default: all, in this order")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--out", type=Path, help="a file that is written anew after each measurement")
    parser.add_argument("--toy", action="store_true", help="small sizes, as where there is no GPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: no such part; allowed: {', '.join(names)}")
    chosen = [part for part in PARTS if part.name in arguments.parts or not arguments.parts]
    found: dict[str, Found] = {}

    def changed(report: dict[str, Found]) -> None:
        found.update(report)
        if arguments.out:
            write_atomically(arguments.out, _to_json(arguments.minutes, report, indent=2))
        name = list(report)[-1]
        last = report[name]
        print(f"{name}: {last['seconds']} s, {len(last['results'])} done {_trouble(last)}", file=sys.stderr, flush=True)

    set_up()
    with tempfile.TemporaryDirectory() as folder:

        def setting() -> Setting:
            return Setting(TOY if arguments.toy else sizes(), Path(folder))

        run_parts(chosen, setting, 60 * arguments.minutes, changed)
    if arguments.json:
        print(_to_json(arguments.minutes, found).decode())
    else:
        print(json.dumps(found, indent=2))


def _to_json(minutes: float, report: dict[str, Found], indent: int | None = None) -> bytes:
    return json.dumps({"benchmark": "gpu", "minutes": minutes, "parts": report}, indent=indent).encode()


def _trouble(found: Found) -> str:
    words = [f"{name}: {text}" for name, text in found["errors"].items()]
    return "; ".join(words + [f"no time for {each}" for each in found["left_out"]])


if __name__ == "__main__":
    main()

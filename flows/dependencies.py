"""The code that each stage depends on, written into dvc.yaml: `python -m flows.dependencies [--check]`.

A stage depends on the modules that decide its result, which `cocomix/plumbing/sources.py` finds by their imports.
Artifacts, figures and templates among the dependencies are written by hand, and stay as they are.
"""

import argparse
import io
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cocomix.plumbing.sources import ROOT, sources

FILE = Path("dvc.yaml")


def with_code(text: str) -> str:
    """The text of a dvc.yaml, each stage with the modules that it depends on before its other dependencies."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    pipeline = yaml.load(text)
    for name, stage in pipeline["stages"].items():
        _put(stage, [path.relative_to(ROOT).as_posix() for path in sources(ROOT / f"stages/{name}.py").values()])
    written = io.StringIO()
    yaml.dump(pipeline, written)
    return written.getvalue()


def _put(stage: CommentedMap, modules: list[str]) -> None:
    """Put the modules in place of those that are there; what has a comment keeps it."""
    deps = stage["deps"]
    for index in reversed(range(len(deps))):
        if deps[index].partition("/")[0] in ("cocomix", "stages") and not deps[index].endswith(".jinja"):
            del deps[index]
    for index, module in enumerate(sorted(modules, key=lambda each: (each.startswith("cocomix"), each))):
        deps.insert(index, module)
    deps.fa.set_block_style()


def main() -> None:
    """Write dvc.yaml, or with --check compare it.

    Raises:
        SystemExit: 1 when --check finds another list.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flows.dependencies", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where dvc.yaml lacks a module")
    text = FILE.read_text()
    new = with_code(text)
    if not parser.parse_args().check:
        FILE.write_text(new)
    elif new != text:
        raise SystemExit(
            "error: dvc.yaml does not list the code that its stages run; python -m flows.dependencies writes it"
        )


if __name__ == "__main__":
    main()

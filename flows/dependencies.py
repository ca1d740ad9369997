"""Write the code that each stage depends on into dvc.yaml: `python -m flows.dependencies [--check]`.

A stage depends on the modules that determine its result, which `cocomix/plumbing/sources.py` finds by their imports.
Artifacts, metrics and templates among the dependencies are written by hand and are left unchanged.
"""

import argparse
import io
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cocomix.plumbing.sources import ROOT, sources

FILE = Path("dvc.yaml")


def with_code(text: str) -> str:
    """The text of a dvc.yaml with each stage's modules listed before its other dependencies."""
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
    """Replace the modules in a stage's dependencies; comments on other entries stay."""
    deps = stage["deps"]
    for index in reversed(range(len(deps))):
        if deps[index].partition("/")[0] in ("cocomix", "stages") and not deps[index].endswith(".jinja"):
            del deps[index]
    for index, module in enumerate(sorted(modules, key=lambda each: (each.startswith("cocomix"), each))):
        deps.insert(index, module)
    deps.fa.set_block_style()


def main() -> None:
    """Write dvc.yaml, or check it with --check.

    Raises:
        SystemExit: 1 when --check finds a different list.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flows.dependencies", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where dvc.yaml lacks a module")
    check = parser.parse_args().check
    text = FILE.read_text()
    new = with_code(text)
    if not check:
        FILE.write_text(new)
    elif new != text:
        raise SystemExit(
            "error: dvc.yaml does not list the code that its stages run; python -m flows.dependencies writes it"
        )


if __name__ == "__main__":
    main()

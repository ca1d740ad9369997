"""The source files that decide what a stage makes: those its module imports, however deep, without the plumbing.

`Work` keys unfinished work by their digest, and the tests hold the dependencies in dvc.yaml to the same set.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("cocomix", "stages")
PLUMBING = frozenset(
    {
        "cocomix",
        "cocomix.artifact",
        "cocomix.checked",
        "cocomix.device",
        "cocomix.distributed",
        "cocomix.errors",
        "cocomix.foreign",
        "cocomix.gpus",
        "cocomix.interrupt",
        "cocomix.params",
        "cocomix.parent",
        "cocomix.progress",
        "cocomix.runtime",
        "cocomix.sources",
        "cocomix.workers",
        "stages",
        "stages.launch",
        "stages.stage",
    }
)
"""How work is done, shown and kept, not what comes out: mending one of these throws no work away."""

ROOT = Path(__file__).parents[1]


def sources(entry: Path) -> dict[str, Path]:
    """The modules behind the program `entry`, itself included, by name; imports inside functions count too."""
    found = {"__main__": entry}
    waiting = [entry]
    while waiting:
        for name in _imports(waiting.pop()):
            if name not in found and name not in PLUMBING and (path := _path(name)):
                found[name] = path
                waiting.append(path)
    return found


def digest_of_sources(entry: Path) -> str:
    """Digest of `sources(entry)`; comments and layout do not count."""
    digest = hashlib.sha256()
    for name, path in sorted(sources(entry).items()):
        digest.update(f"{name}\n{ast.dump(ast.parse(path.read_bytes()))}\n".encode())
    return digest.hexdigest()


def _imports(path: Path) -> Iterator[str]:
    """Names in our packages that may be modules: of `from cocomix.sae import loss` also `cocomix.sae.loss`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = path.resolve().parents[node.level - 1].relative_to(ROOT).parts if node.level else ()
            module = ".".join([*around, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{each.name}" for each in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] in PACKAGES:
                # Importing a module runs the packages around it.
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _path(module: str) -> Path | None:
    stem = ROOT.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)

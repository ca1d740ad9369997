"""The source files that determine a stage's result: its module and all its imports, except the plumbing.

`Work` includes their digest in its key, and `flows/dependencies.py` writes the same files into dvc.yaml.

A stage runs the code that it loaded at its start, even if the files change later. `hold` fixes all digests to that
code, and `check` verifies that the files still contain it.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NamedTuple

from cocomix.plumbing.errors import UserError

PACKAGES = ("cocomix", "stages")
PLUMBING = (
    "cocomix.check",
    "cocomix.models.card",
    "cocomix.params",
    "cocomix.plumbing",
    "cocomix.training.tensorboard",
    "stages.early",
    "stages.launch",
    "stages.matrix",
    "stages.reads",
    "stages.stage",
)
"""Modules and packages that run, store and show work, or check parameters: changing them invalidates no work.

`cocomix.params` also says what some values mean, such as `CorpusParams.limit` and `distillation`. If you change such a
meaning, also change a module that counts, or remove the old results.
"""

ROOT = Path(__file__).parents[2]

State = tuple[int, ...]
"""Size, times, inode and device of a file: different after any write or replacement, even if its mtime is restored."""


class SourceFile(NamedTuple):
    """A source file of ours, as it was read."""

    state: State
    imports: frozenset[str]
    """Names in our packages that may be modules."""
    digest: str
    """Digest of the code without comments, docstrings and layout."""


HELD: dict[Path, SourceFile] = {}
"""The code that this process runs, after `hold`."""


def sources(entry: Path) -> dict[str, Path]:
    """The modules that the program `entry` consists of, by name, itself and imports inside functions included.

    An `__init__.py` without code is left out.
    """
    return {name: path for name, (path, source) in _walk(entry).items() if source.digest != NO_CODE}


def digest_of_sources(entry: Path) -> str:
    """Digest of the code of `sources(entry)`, without comments, docstrings and layout."""
    digest = hashlib.sha256()
    for name, (_, source) in sorted(_walk(entry).items()):
        digest.update(f"{name}\n{source.digest}\n".encode())
    return digest.hexdigest()


def states() -> dict[Path, State]:
    """The state of every module's file in our packages; call it before importing them."""
    return {path: state_of(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def state_of(path: Path) -> State:
    """The state of a file.

    Raises:
        OSError: when it does not exist.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def hold(entry: Path, before: Mapping[Path, State]) -> None:
    """Fix all digests to the code behind `entry` as it is now, which must be the code that was imported.

    Args:
        before: `states()` from before the import.

    Raises:
        UserError: when a file was written since then; later also when a module that has changed is imported.
    """
    HELD.update(_walk(entry).values())
    for path, source in HELD.items():
        if before.get(path, source.state) != source.state:
            raise UserError(f"{_shown(path)} changed while this stage started; run it again")
    sys.meta_path.insert(0, _Guard())


def check() -> None:
    """Check that the files still contain the code that is held.

    Raises:
        UserError: when one does not.
    """
    for path in HELD:
        _check(path)


def _check(path: Path) -> None:
    held = HELD[path]
    try:
        same = state_of(path) == held.state or _parse(path).digest == held.digest
    except (OSError, SyntaxError, ValueError):
        same = False
    if not same:
        raise UserError(f"{_shown(path)} changed while this stage was at work; run it again: nothing is lost")


class _Guard(MetaPathFinder):
    """Refuses to import a module whose file no longer contains the code that is held."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:  # noqa: ARG002
        if name.partition(".")[0] in PACKAGES and (file := _path(name)) in HELD:
            assert file
            _check(file)


def _walk(entry: Path) -> dict[str, tuple[Path, SourceFile]]:
    found: dict[str, tuple[Path, SourceFile]] = {}
    waiting: dict[str, Path] = {"__main__": entry}
    while waiting:
        name, path = waiting.popitem()
        found[name] = path, HELD.get(path) or _parse(path)
        for each in found[name][1].imports - found.keys():
            if not is_plumbing(each) and (file := _path(each)):
                waiting[each] = file
    return found


def is_plumbing(module: str) -> bool:
    """Whether changing the module, given by name, invalidates no work."""
    return module in PACKAGES or any(module == each or module.startswith(f"{each}.") for each in PLUMBING)


def _parse(path: Path) -> SourceFile:
    state = state_of(path)
    tree = ast.parse(path.read_bytes())
    return SourceFile(state, frozenset(_imports(path, tree)), _digest_of_code(tree))


def _digest_of_code(tree: ast.Module) -> str:
    """Digest of a module's code without docstrings of modules, classes, functions and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_docstring(each)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


NO_CODE = _digest_of_code(ast.Module([], []))


def _shown(path: Path) -> Path:
    inside = next((each for each in (Path.cwd(), ROOT) if path.is_relative_to(each)), None)
    return path.relative_to(inside) if inside else path


def _imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Names in our packages that may be modules: `from cocomix.sae import loss` also gives `cocomix.sae.loss`."""
    for node in ast.walk(tree):
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

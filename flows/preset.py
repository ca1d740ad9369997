"""Switch params.yaml to a preset, keeping its comments: `python -m flows.preset smoke`; `default` switches back.

A preset file holds only differences from the shipped parameters, which `presets/default.yaml` holds. Before every
preset, each key that any preset sets gets its shipped value. So the result does not depend on the preset that was
active before. Keys that no preset sets keep their values.
"""

import argparse
import io
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from cocomix.params import FILE, Params
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.checked import mapping, merge, parse, read_file, read_yaml
from cocomix.plumbing.dialect import needs_quotes
from cocomix.plumbing.errors import UserError, suggestion
from flows.workspace import alone

FOLDER = Path("presets")
DEFAULT = "default"
"""The preset that goes back: a copy of params.yaml as it ships."""


def switch(name: str) -> None:
    """Write a preset into params.yaml.

    Raises:
        UserError: when there is no such preset, or the resulting parameters are not valid.
    """
    write_atomically(FILE, content_of(name))


def content_of(name: str) -> bytes:
    """The content of params.yaml with a preset applied.

    Raises:
        UserError: when there is no such preset, or the resulting parameters are not valid.
    """
    files = {path.stem: path for path in FOLDER.glob("*.yaml")}
    if name not in files:
        raise UserError(f"{name}: no such preset in {FOLDER}; {suggestion(name, [*files])}")
    shipped, content = (_yaml().load(sections(path)) for path in (FOLDER / f"{DEFAULT}.yaml", FILE))
    _restore(content, shipped, _set_by(path for path in files.values() if path.stem != DEFAULT))
    if name != DEFAULT:
        _set(content, _yaml().load(sections(files[name])))
    return _dumped(content, str(files[name]))


def _set_by(presets: Iterable[Path]) -> dict[str, Any]:
    """The keys that presets set, nested as in params.yaml, each with the value of one of them."""
    found: dict[str, Any] = {}
    for path in presets:
        with suppress(UserError):  # only the chosen preset needs to be valid
            merge(found, read_yaml(path))
    return found


def _restore(content: CommentedMap, shipped: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Give each key its shipped value, in place, and remove it if none is shipped, as for an entry of `sae.also`.

    Args:
        keys: nested as in params.yaml; the values do not matter.
    """
    for key, inner in keys.items():
        if key not in shipped:
            content.pop(key, None)
        elif all(isinstance(each, Mapping) for each in (inner, shipped[key], content.get(key))):
            _restore(content[key], shipped[key], inner)
            if not content[key]:  # of a section that was written line by line, {} would get a line of its own
                content[key] = shipped[key]
        else:
            _set(content, {key: shipped[key]})


def sections(path: Path) -> bytes:
    """The content of a YAML file, after checking that it holds sections.

    Raises:
        UserError: when it does not, or is missing.
    """
    content = read_file(path)
    mapping(content, str(path))
    return content


def with_values(params: bytes, overrides: Iterable[Mapping[str, Any]], source: str) -> bytes:
    """The content of params.yaml with the values of nested mappings and its own comments.

    Args:
        source: where the values come from, for the error.

    Raises:
        UserError: when the result is not valid.
    """
    content = _yaml().load(params)
    for values in overrides:
        _set(content, values)
    return _dumped(content, source)


def _set(content: CommentedMap, values: Mapping[str, Any]) -> None:
    """Set values in nested mappings, in place, and keep the comments in their column."""
    merge(content, values)
    _align(content, values)


def _dumped(content: CommentedMap, source: str) -> bytes:
    """The content of params.yaml as bytes, after checking that it is valid; see `with_values`."""
    stream = io.BytesIO()
    _yaml().dump(content, stream)
    try:
        written = mapping(stream.getvalue(), source)
    except UserError:  # a lone surrogate, which a command line or JSON may hold
        raise UserError(f"{source}: holds text that is not Unicode") from None
    parse(Params, written, source)
    return stream.getvalue()


COMMENT_COLUMN = 30
"""Column of the comments in params.yaml."""


def _align(content: CommentedMap, changed: Mapping[str, Any]) -> None:
    """Move comments that a long value or a block list had displaced back to their place."""
    for key, value in changed.items():
        inner, comments = content[key], content.ca.items.get(key)
        if isinstance(value, Mapping) and isinstance(inner, CommentedMap):
            _align(inner, value)
        elif comments and comments[2]:
            comments[2].column = min(comments[2].column, COMMENT_COLUMN)
            comments[3] = None  # set for a block list; for the value that replaces it, the next key would lose its line


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.representer.add_representer(str, _represent_text)
    yaml.representer.ignore_aliases = lambda _: True
    return yaml


def _represent_text(to: RoundTripRepresenter, text: str) -> ScalarNode:
    """Represent text, quoted where readers of YAML would differ without quotes."""
    return to.represent_scalar("tag:yaml.org,2002:str", text, style='"' if needs_quotes(text) else None)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.preset", description="Switch params.yaml to a preset.")
    names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
    parser.add_argument("name", help=f"a file of {FOLDER}, without .yaml: {names}")
    name = parser.parse_args().name
    try:
        with alone():
            switch(name)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

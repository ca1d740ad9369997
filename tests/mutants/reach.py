"""Which lines of the core each test reaches, and the choice of tests by it."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest


class Reached(NamedTuple):
    """What a test does, without a fault."""

    seconds: float
    lines: set[str]
    """Of the room's modules, which it runs: `path:line`."""

    def reaches(self, place: str) -> bool:
        """Whether it runs a line, or any of a module: `path:`."""
        return any(each.startswith(place) if place.endswith(":") else each == place for each in self.lines)


class Tracing:
    """Notes what each test reaches of a folder or file, by the test's name, as JSON in `found`."""

    def __init__(self, room: Path, found: Path) -> None:
        self._room, self._found = str(room), found
        self._reached: dict[str, Reached] = {}
        self._shared: set[str] = set()
        """By fixtures that serve several tests, so that each of them may be one that notices."""
        self._lines: set[str] = set()

    def _trace(self, frame: FrameType, *_event: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(self._room):
            return None
        self._lines.add(f"{path}:{frame.f_lineno}")
        return self._trace

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._lines, started = set(), time.perf_counter()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        result = yield
        sys.settrace(None)
        self._reached[item.nodeid] = Reached(time.perf_counter() - started, self._lines)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        own, self._lines = self._lines, set()
        result = yield
        (own if fixturedef.scope == "function" else self._shared).update(self._lines)
        self._lines = own
        return result

    def pytest_sessionfinish(self) -> None:
        found = {name: (seconds, sorted(lines | self._shared)) for name, (seconds, lines) in self._reached.items()}
        self._found.write_text(json.dumps(found))


class Choice:
    """Runs some tests, in their order; those of a file that cannot be imported are not there."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        by_name = {each.nodeid: each for each in items}
        items[:] = [by_name[name] for name in self._names if name in by_name]

import importlib.util

import pytest

from benchmarks import start
from cocomix.__main__ import _parser


def test_the_seconds_of_a_command_and_of_each_import_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start.of_command(start.COMMANDS["help"]) > 0
    modules = ["json.tool", "pydoc_data.topics", "cocomix.statistics"]
    monkeypatch.setattr(start, "MODULES", modules)
    found = start.of_imports()
    assert list(found) == modules
    assert all(seconds >= 0 for seconds in found.values())


def test_the_commands_and_modules_that_are_measured_exist() -> None:
    for name in ("concepts", "steer"):
        assert _parser().parse_args(start.COMMANDS[name]).command == name
    assert all(importlib.util.find_spec(each) for each in start.MODULES)

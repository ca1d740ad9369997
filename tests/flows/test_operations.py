"""What docs/operations.md says can be typed."""

import re
import shlex
from typing import get_args

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from flows.dag import Mode
from flows.overrides import assignments
from flows.pipeline import command_line
from flows.serve import ATTEMPTS, FLOWS
from flows.settings import settings, tasks
from flows.tasks import RETRY_SECONDS
from tests.flows.conftest import ROOT

PAGE = (ROOT / "docs/operations.md").read_text()
COMMANDS = [
    line.partition("    #")[0] for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


def test_command_lines_of_the_flow_are_understood() -> None:
    lines = [shlex.split(each) for each in COMMANDS if each.startswith("python -m flows.pipeline")]
    assert lines
    for _, _, _, *arguments in lines:
        given = command_line(arguments)
        assert {each.partition("@")[0] for each in given.stages} <= set(
            yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
        )


def test_modes_and_deployments_are_those_that_there_are() -> None:
    assert all(f"`{each}`" in PAGE for each in get_args(Mode))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert re.findall(r"^\| `(\w+)` \|", PAGE.partition("| preset |")[0], re.MULTILINE) == [
        each["name"] for each in deployments
    ]
    known = {f"{FLOWS[each['entrypoint']].name}/{each['name']}" for each in deployments}
    assert {shlex.split(each)[3] for each in COMMANDS if each.startswith("prefect deployment run")} <= known


def test_parameters_of_deployment_runs_are_those_of_the_flows() -> None:
    flows = {each.name: each for each in FLOWS.values()}
    for line in (shlex.split(each) for each in COMMANDS if each.startswith("prefect deployment run")):
        given = {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in line if "=" in each)}
        flows[line[3].partition("/")[0]].validate_parameters(given)
        assignments(given.get("overrides", []))


def test_sweeps_are_of_parameters_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = [shlex.split(each) for each in COMMANDS if each.startswith("python -m flows.sweep")]
    assert lines
    for _, _, _, name, *rest in lines:
        grid = [each for each in rest if "=" in each]
        methods = ["cocomix"] if "--methods" in rest else []
        first, *_, last = settings(ROOT / name if name.endswith(".yaml") else None, grid)
        assert tasks([first, last], methods)  # all of a file are in test_shipped_sweeps.py


@pytest.mark.parametrize("name", sorted(set(re.findall(r"PREFECT_[A-Z_]+", PAGE))))
def test_variables_are_settings_of_prefect(name: str) -> None:
    assert name in _get_valid_setting_names(Settings)


def test_numbers_are_those_of_the_code() -> None:
    assert f"four times, after {', '.join(map(str, RETRY_SECONDS[:3]))} and {RETRY_SECONDS[3]} s" in " ".join(
        PAGE.split()
    )
    assert len(RETRY_SECONDS) == 4
    assert ATTEMPTS == 5

"""What docs/operations.md says can be typed."""

import re
import shlex
from typing import get_args

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from flows.dag import Mode
from flows.overrides import nested
from flows.pipeline import command_line, stage
from flows.serve import ATTEMPTS
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
        assert set(given.stages) <= set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def test_modes_and_deployments_are_those_that_there_are() -> None:
    assert all(f"`{each}`" in PAGE for each in get_args(Mode))
    deployments = [each["name"] for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == deployments
    assert {each.partition("pipeline/")[2].split()[0] for each in COMMANDS if "deployment run" in each} <= {
        *deployments
    }


def test_parameters_of_deployment_runs_are_those_of_the_flow() -> None:
    line = next(each for each in COMMANDS if each.startswith("prefect deployment run"))
    given = dict(each.split("=", 1) for each in shlex.split(line) if "=" in each)
    assert set(given) == {"stages", "mode", "overrides"}
    assert nested(yaml.safe_load(given["overrides"])) == {"sae": {"k": 16}}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"PREFECT_[A-Z_]+", PAGE))))
def test_variables_are_settings_of_prefect(name: str) -> None:
    assert name in _get_valid_setting_names(Settings)


def test_numbers_are_those_of_the_code() -> None:
    assert stage.retries == 4
    assert stage.retry_delay_seconds == [2, 4, 8, 16]
    assert ATTEMPTS == 5

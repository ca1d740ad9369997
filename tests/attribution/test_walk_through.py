"""The commands and the program of docs/concepts.md that lead from text to a labelled position."""

import re
from pathlib import Path

import pytest
import yaml

from cocomix.attribution import agreement
from tests.attribution.conftest import Setting
from tests.attribution.test_agreement import SHIPPED, publish_sae
from tests.attribution.test_build import labelled

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/concepts.md").read_text()
COMMANDS = [line.partition("#")[0].split() for line in re.findall(r"^(?:python -m|dvc) .*$", DOCS, re.M)]


def test_the_program_prints_a_line_a_position_with_its_concepts(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(setting).path.rename("artifacts/concepts")
    (program,) = (code for code in re.findall(r"```python\n(.*?)```", DOCS, re.S) if "ConceptLabels" in code)
    exec(program, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    shown = DOCS.partition("prints concepts and scores")[2].split("```")[1].strip().splitlines()
    assert len(shown) == 7
    for line in (*lines, *shown):
        assert re.fullmatch(r"'.*' +then '.*'( +\d+: \d\.\d{3})* *", line), line


def test_the_stages_and_the_presets_exist() -> None:
    stages = {stage for each in COMMANDS if each[:2] == ["dvc", "repro"] for stage in each[2:]}
    assert "attribution" in stages
    assert stages <= yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].keys()
    presets = [each[-1] for each in COMMANDS if "flows.preset" in each]
    assert "smoke" in presets
    assert [each for each in presets if not (ROOT / "presets" / f"{each}.yaml").exists()] == []


def test_the_command_for_agreement_prints_the_documented_table(
    setting: Setting, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("params.yaml").write_text(SHIPPED.read_text())
    publish_sae(setting)
    (command,) = (each for each in COMMANDS if "cocomix.attribution.agreement" in each)
    monkeypatch.setattr(agreement, "PER_WINDOW", 1)
    agreement.main([*command[3:-1], "4"])
    printed = capsys.readouterr().out.splitlines()
    shown = DOCS.partition("same scope. For the models above:")[2].split("```")[1].strip().splitlines()
    assert shown[0] == printed[0]
    assert [each[:37].rstrip() for each in shown] == [each[:37].rstrip() for each in printed]

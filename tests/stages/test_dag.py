"""dvc.yaml against the code: what a stage depends on is what it imports and reads."""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cocomix.sources import sources

ROOT = Path(__file__).parents[2]
DAG: dict[str, dict[str, Any]] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@pytest.mark.parametrize("stage", DAG)
def test_dependencies_cover_every_module_that_decides_the_result(stage: str) -> None:
    deps = [ROOT / each for each in DAG[stage]["deps"]]
    imported = {path for path in sources(ROOT / "stages" / f"{stage}.py").values() if path.read_text().strip()}
    missing = {path for path in imported if not any(path.is_relative_to(each) for each in deps)}
    assert not missing, f"dvc.yaml: {stage}: deps lack {sorted(str(each.relative_to(ROOT)) for each in missing)}"


@pytest.mark.parametrize("stage", DAG)
def test_code_dependencies_are_imported(stage: str) -> None:
    imported = sources(ROOT / "stages" / f"{stage}.py").values()
    code = [ROOT / each for each in DAG[stage]["deps"] if each.startswith("cocomix")]
    assert not [each for each in code if not any(path.is_relative_to(each) for path in imported)]


@pytest.mark.parametrize("stage", DAG)
def test_parameters_cover_every_section_that_the_stage_reads(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_bytes())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    declared = {each.partition(".")[0] for each in DAG[stage]["params"] if isinstance(each, str)}
    assert read <= declared


@pytest.mark.parametrize("stage", DAG)
def test_a_stage_is_the_module_of_its_name(stage: str) -> None:
    assert DAG[stage]["cmd"].startswith(f"exec python -m stages.{stage}")

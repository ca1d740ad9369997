"""dvc.yaml against the code: what a stage depends on is what it imports and reads."""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cocomix.params import Params

ROOT = Path(__file__).parents[2]
DAG: dict[str, dict[str, Any]] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@pytest.mark.parametrize("stage", DAG)
def test_parameters_cover_every_section_that_the_stage_reads(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_bytes())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    if "model_dump" in read:
        read = set(Params.model_fields)
    declared = {each.partition(".")[0] for each in DAG[stage]["params"] if isinstance(each, str)}
    assert read <= declared


@pytest.mark.parametrize("stage", DAG)
def test_a_stage_is_the_module_of_its_name(stage: str) -> None:
    assert DAG[stage]["cmd"].startswith(f"exec python -m stages.{stage}")

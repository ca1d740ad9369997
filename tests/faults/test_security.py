"""What others wrote is read, and never run. That models and autoencoders are not is in test_bad_input.py too."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cocomix.params import load
from cocomix.plumbing import checkpoint
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from flows.overrides import override
from stages.matrix import matrix_item
from tests.faults.made import MARK, Evil
from tests.stages.project import Project

ROOT = Path(__file__).parents[2]
SHELL = f"'; touch {MARK}; $(touch {MARK}) `touch {MARK}` && touch {MARK} | \" \\ ${{x}} {{{{ 1 + 1 }}}}"


def test_a_checkpoint_that_holds_more_than_tensors_is_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(folder, 1, {"step": 1})
    checkpoint.save(folder, 2, {"step": 2, "evil": Evil()})
    assert checkpoint.load(folder) == {"step": 1}
    assert "is damaged" in capsys.readouterr().err
    assert not (folder / MARK).exists()


def test_arrays_of_objects_are_not_read(tokens_folder: Path) -> None:
    import numpy as np

    from cocomix.tokens.windows import Tokens

    np.save("evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with Work("tokenize", tokens_folder, {}, {"evil": True}) as work:
        with work.write("train.npy") as pending:
            shutil.copy("evil.npy", pending.path)
        work.finish(json.loads((tokens_folder / "manifest.json").read_text())["about"])
        work.publish()
    with pytest.raises(ValueError, match=r"allow_pickle|Array can't be memory-mapped"):
        Tokens(tokens_folder).windows("train")
    assert not Path(MARK).exists()


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "a/../../outside"])
def test_neither_manifest_nor_journal_lead_out_of_their_folder(folder: Path, name: str) -> None:
    Path("artifacts").mkdir()
    Path("artifacts/outside").write_text("keep")
    with Work("thing", Path("artifacts/thing"), {}, {}) as work:
        with work.write("file") as pending:
            pending.path.touch()
        entry = {"files": {name: {"rows": None, "bytes": 4, "sha256": ""}}}
        with (work.path / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps(entry) + "\n")
        assert work.records().keys() == {"file"}
        work.finish({})
        work.publish()
    manifest = json.loads(Path("artifacts/thing/manifest.json").read_text()) | entry
    Path("artifacts/thing/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged"):
        Artifact(Path("artifacts/thing"))
    assert Path("artifacts/outside").read_text() == "keep"


def test_no_parameter_reaches_a_shell(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.path)
    override({"report.title": SHELL})
    project.dvc("repro", "--single-item", "report")
    assert not Path(MARK).exists()
    assert "touch" in Path("artifacts/report/index.html").read_text()


@pytest.mark.parametrize("overrides", [{"pretrain.seeds": [SHELL]}, {"pretrain.methods": [SHELL]}])
def test_what_becomes_part_of_a_command_can_hold_no_text(folder: Path, overrides: dict[str, object]) -> None:
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.raises(UserError, match=r"overrides: pretrain(\.seeds\.0|: methods lists)"):
        override(overrides)
    assert (folder / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_no_command_holds_a_parameter() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert {stage["cmd"] for stage in stages.values()} == {f"exec python -m stages.{name}" for name in stages}


def test_a_seed_that_is_a_command_is_refused_and_not_run(project: Project) -> None:
    project.change({"pretrain": {"seeds": ["$(touch executed)"]}})
    with pytest.raises(AssertionError, match=r"error: params\.yaml: pretrain\.seeds\.0: '\$\(touch executed\)': input"):
        project.dvc("repro", "--single-item", "pretrain")
    assert not (project.path / MARK).exists()


@pytest.mark.parametrize("stage", ["pretrain@ntp-0", "evaluate@cocomix-0"])
def test_a_stage_of_a_matrix_knows_its_item_from_dvc(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", stage)
    method = stage.partition("@")[2].removesuffix("-0")
    assert matrix_item([], load(ROOT / "params.yaml")) == (method, 0)

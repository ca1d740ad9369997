"""A truncated file, or a flipped byte, in every kind of file of every artifact: the reader refuses it by its name."""

import importlib
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from cocomix.__main__ import main as command
from cocomix.distribution.draws import Draws
from cocomix.explain.atlas import Atlas
from cocomix.explore.export import write_page
from cocomix.explore.session import Session
from cocomix.explore.start import default_model
from cocomix.params import load
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.predictions.reader import open_predictions
from tests.stages.project import Project

READ = [
    ("corpus", "train.parquet", "tokenize"),
    ("corpus", "test.parquet", "tokenize"),
    ("tokens", "train.npy", "base"),
    ("tokens", "validation.npy", "base"),
    ("tokens", "test.npy", "evaluate ntp 0"),
    ("tokens", "train.documents.npy", "activations"),
    ("tokens", "tokenizer/tokenizer.json", "evaluate ntp 0"),
    ("base", "model.safetensors", "activations"),
    *(("base_tokens", "manifest.json", reader) for reader in ("base", "attribution", "methods")),
    ("base", "model.safetensors", "attribution"),
    ("base", "model.safetensors", "distribution"),
    ("base", "config.json", "activations"),
    ("activations", "*/train-*", "sae"),
    ("sae", "sae.safetensors", "attribution"),
    ("sae", "config.json", "explain"),
    ("concepts", "train-*.parquet", "pretrain cocomix 0"),
    ("concepts", "validation-*.parquet", "pretrain cocomix 0"),
    ("distribution", "train-*.parquet", "who learns from draws"),
    ("distribution", "validation-*.parquet", "who learns from draws"),
    ("methods", "methods.json", "pretrain ntp 0"),
    ("models/ntp-0", "model.safetensors", "evaluate ntp 0"),
    ("models/ntp-0", "config.json", "evaluate ntp 0"),
    ("evaluations/cocomix-0", "documents.parquet", "report"),
    ("evaluations/cocomix-0", "examples.parquet", "report"),
    ("evaluations/ntp-0", "writings.parquet", "report"),
    ("models/cocomix-0", "model.safetensors", "steer"),
    ("models/cocomix-0", "tokenizer.json", "the command"),
    ("atlas", "concepts.parquet", "report"),
    ("atlas", "concepts.parquet", "the command"),
    ("atlas", "contexts.parquet", "the explorer"),
    ("atlas", "contexts.parquet", "the page"),
    ("atlas", "vocabulary.parquet", "report"),
    ("atlas", "vocabulary.parquet", "the page"),
    ("steering", "effects.parquet", "report"),
    ("steering", "predicted.parquet", "the explorer"),
    ("steering", "predicted.parquet", "the page"),
    *((out, "manifest.json", "evaluate ntp 0") for out in ("tokens", "methods", "models/ntp-0")),
    *((out, "manifest.json", "methods") for out in ("base", "sae", "concepts")),
    ("corpus", "manifest.json", "tokenize"),
    ("activations", "manifest.json", "sae"),
    ("distribution", "manifest.json", "who learns from draws"),
    ("methods", "manifest.json", "pretrain ntp 0"),
    *((out, "manifest.json", "report") for out in ("evaluations/ntp-0", "evaluations/cocomix-0", "atlas", "steering")),
    *((out, "manifest.json", "the command") for out in ("models/cocomix-0", "concepts", "base", "sae", "atlas")),
    *((out, "manifest.json", reader) for out in ("atlas", "steering") for reader in ("the explorer", "the page")),
]
"""Artifact, kind of file, and what reads it early: a stage, or one of `OTHERS`. Nothing reads the report's own."""


def explore() -> None:
    artifacts = Path("artifacts")
    Session(default_model(artifacts), artifacts).concept(0)


def export() -> None:
    write_page(atlas := Atlas(), Path("atlas.html"), open_predictions(Path("artifacts/steering"), atlas))


def read_draws() -> None:
    draws = Draws(Artifact(Path("artifacts/distribution")))
    for split in ("train", "validation"):
        assert list(draws.read(split))


OTHERS: dict[str, Callable[[], None]] = {
    "the command": lambda: command(["concepts", "text"]),
    "the explorer": explore,
    "the page": export,
    "who learns from draws": read_draws,
}


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished.copy(tmp_path_factory.mktemp("damage") / "project")


def cut(path: Path) -> bytes:
    return path.read_bytes()[:-20]


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize(("out", "pattern", "reader"), READ)
def test_damage_is_refused_by_the_name_of_the_file(project: Project, out: str, pattern: str, reader: str) -> None:
    artifact = Artifact(project.path / "artifacts" / out)
    path = next(artifact.path.glob(pattern))
    where = path.relative_to(project.path)
    whole = path.read_bytes()
    for damage in (cut, flipped):
        content = damage(path)
        path.unlink()  # it is linked to the cache
        path.write_bytes(content)
        message = refusal(project, reader)
        path.write_bytes(whole)
        if pattern == "manifest.json":
            assert message == f"{where}: damaged; remove {where.parent} and run the stage that makes it"
            break  # a flipped byte there is another manifest, of which readers can judge the form only
        assert message.startswith(f"{where}: ")
        assert message.endswith(f"; remove artifacts/{out} and run the stage {artifact.manifest.stage!r} again")


def refusal(project: Project, reader: str) -> str:
    """What a stage says that has to compute anew, or another reader."""
    if other := OTHERS.get(reader):
        with chdir(project.path), pytest.raises((UserError, SystemExit)) as refused:
            other()
        return str(refused.value).removeprefix("error: ")
    stage, *item = reader.split()
    for old in (project.path / "artifacts/.work").glob(f"{stage}*"):
        shutil.rmtree(old)
    shutil.rmtree(project.path / "artifacts/.measured", ignore_errors=True)
    module = importlib.import_module(f"stages.{stage}")
    arguments = [item[0], int(item[1])] if item else []
    with chdir(project.path), pytest.raises(UserError) as error:
        module.run(load(), *arguments)
    return str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_metrics_are_refused_by_the_report(project: Project, content: bytes) -> None:
    path = project.path / "metrics/pretrain/ntp-0.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    message = refusal(project, "report")
    path.write_bytes(whole)
    assert message.startswith("metrics/pretrain/ntp-0.json:")
    assert "\n" not in message

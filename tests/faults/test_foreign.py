"""Another artifact in the place of the one that something was made from: every stage that reads both refuses."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cocomix.__main__ import main as command
from cocomix.attribution import agreement
from cocomix.explore.session import Session
from cocomix.explore.start import default_model
from cocomix.params import load
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.shapes.methods import supervision
from tests.stages.project import OUTS, Project, words

ARTIFACTS = Path("artifacts")
FORMS = {"hidden": {"predicts": "hidden"}, "cached": {"mixing": "none", "kd": {"source": "cached", "kl_weight": 1.0}}}


def stage(name: str) -> Callable[[], None]:
    module, *item = words(name)
    arguments: list[Any] = [item[0], int(item[1])] if item else []
    return lambda: importlib.import_module(f"stages.{module}").run(load(), *arguments)


READERS: dict[str, Callable[[], None]] = {
    **{name: stage(name) for name in OUTS},
    "pretrain@kd-0": stage("pretrain@kd-0"),
    "pretrain@hidden-0": stage("pretrain@hidden-0"),
    "pretrain@cached-0": stage("pretrain@cached-0"),
    "python -m cocomix": lambda: command(["concepts", "text"]),
    "explore": lambda: Session(default_model(ARTIFACTS), ARTIFACTS) and None,
    "agreement": lambda: agreement.main(["--positions", "16"]),
}

FOREIGN = [
    ("base", "tokens", "artifacts/base_tokens"),
    *((reader, "base_tokens", "artifacts/base") for reader in ("activations", "attribution", "explain", "methods")),
    ("activations", "tokens", "artifacts/base"),
    *(
        (reader, "tokens", "artifacts/base")
        for reader in ("attribution", "distribution", "explain", "methods", "agreement")
    ),
    ("sae", "tokens", "artifacts/activations"),
    ("sae", "base_tokens", "artifacts/activations"),
    ("steer", "base_tokens", "artifacts/base"),
    ("sae", "base", "artifacts/activations"),
    *((reader, "base", "artifacts/sae") for reader in ("attribution", "explain", "methods", "agreement")),
    ("pretrain@ntp-0", "tokens", "artifacts/methods"),
    ("pretrain@kd-0", "tokens", "artifacts/methods"),
    ("pretrain@kd-0", "base", "artifacts/methods"),
    ("pretrain@cocomix-0", "tokens", "artifacts/methods"),
    ("pretrain@hidden-0", "base", "artifacts/methods"),
    ("pretrain@cached-0", "distribution", "artifacts/methods"),
    ("evaluate@ntp-0", "tokens", "artifacts/models/ntp-0"),
    ("pretrain@cocomix-0", "concepts", "artifacts/methods"),
    ("evaluate@cocomix-0", "tokens", "artifacts/concepts"),
    ("evaluate@cocomix-0", "concepts", "artifacts/methods"),
    ("evaluate@cocomix-0", "labels", "artifacts/models/cocomix-0"),
    ("steer", "tokens", "artifacts/base"),
    ("steer", "base", "artifacts/sae"),
    ("steer", "sae", "artifacts/concepts"),
    ("steer", "labels", "artifacts/models/cocomix-0"),
    ("report", "evaluations/ntp-0", "artifacts/evaluations/ntp-0"),
    ("report", "atlas", "artifacts/atlas"),
    ("report", "steering", "artifacts/steering"),
    *((reader, "base", "artifacts/concepts") for reader in ("python -m cocomix", "explore")),
    *((reader, "sae", "artifacts/concepts") for reader in ("python -m cocomix", "explore")),
    *((reader, "labels", "artifacts/models/cocomix-0") for reader in ("python -m cocomix", "explore")),
]
"""Who reads, what is another one, and the artifact that is named as made from the former one."""

MIXED = [
    ("pretrain@cocomix-0", "methods", "sae", "concepts"),
    ("pretrain@hidden-0", "methods", "sae", "concepts"),
    ("report", "atlas", "sae", "steering"),
    ("report", "evaluations/cocomix-0", "supervision.cocomix", "steering"),
    ("report", "evaluations/ntp-0", "tokens", "evaluations/cocomix-0"),
    ("python -m cocomix", "atlas", "sae", "concepts"),
    ("explore", "atlas", "tokens", "models/cocomix-0"),
]
"""Who reads, and two artifacts (the first and the last) that were made from different ones of something."""


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy whose stage `methods` has been asked for more methods."""
    project = finished.copy(tmp_path_factory.mktemp("foreign") / "project")
    params = (project.path / "params.yaml").read_bytes()
    project.change(
        {"pretrain": {"methods": ["ntp", "kd", *FORMS, "cocomix"], "kd": {"source": "online"}, "forms": FORMS}}
    )
    done = project.stage("methods")
    assert done.returncode == 0, done.stderr
    (project.path / "params.yaml").write_bytes(params)
    return project


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """Another content for a while, of a file that is linked to the cache."""
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    yield
    path.write_bytes(before)


@contextmanager
def another(artifact: Path, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    change(manifest)
    with replaced(artifact / "manifest.json", json.dumps(manifest).encode()):
        yield


@contextmanager
def other_labels() -> Iterator[None]:
    """As if labels were made anew, of which only CoCoMix learns, and the stage `methods` had run since."""
    path = ARTIFACTS / "methods/methods.json"
    with another(ARTIFACTS / "concepts", lambda each: each["about"].update(a=1)):
        methods = json.loads(path.read_bytes())
        methods["cocomix"]["supervision"] = supervision(load().pretrain.cocomix, ARTIFACTS)
        content = json.dumps(methods).encode()

        def note(manifest: dict[str, Any]) -> None:
            record = {"rows": None, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest["files"]["methods.json"] = record
            manifest["inputs"]["concepts"] = Artifact(ARTIFACTS / "concepts").digest

        with replaced(path, content), another(ARTIFACTS / "methods", note):
            yield


def refusal(reader: str) -> str:
    with pytest.raises((UserError, SystemExit)) as refused:
        READERS[reader]()
    message = str(refused.value).removeprefix("error: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("reader", "which", "made"), FOREIGN)
def test_what_was_made_from_another_one_is_refused_in_one_line(
    project: Project, reader: str, which: str, made: str
) -> None:
    with chdir(project.path):
        new = (
            other_labels() if which == "labels" else another(ARTIFACTS / which, lambda each: each["params"].update(a=1))
        )
        with new:
            message = refusal(reader)
    assert message.startswith(f"{made}: ")
    assert "made from another" in message or "not what the metrics" in message
    assert "; run " in message


@pytest.mark.parametrize(("reader", "one", "of", "other"), MIXED)
def test_two_that_were_made_from_different_ones_are_refused_in_one_line(
    project: Project, reader: str, one: str, of: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chdir(project.path), another(ARTIFACTS / one, lambda each: each["inputs"].update({of: "0" * 64})):
        if reader == "report":  # that its metrics are of another artifact, it says before
            _forget_what_metrics_are_of()
        message = refusal(reader)
    assert f"artifacts/{one}" in message
    assert f"made from different {of}; run " in message or f"made from another {of} than" in message


def _forget_what_metrics_are_of() -> None:
    for path in Path("metrics").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "artifact": None}))


@pytest.mark.parametrize("reader", [*OUTS, "python -m cocomix", "explore", "agreement"])
def test_the_right_ones_are_accepted(finished: Project, tmp_path: Path, reader: str) -> None:
    with chdir(finished.copy(tmp_path / "project").path):
        READERS[reader]()


def test_new_labels_are_no_matter_to_a_method_that_does_not_learn_from_them(finished: Project, tmp_path: Path) -> None:
    with chdir(finished.copy(tmp_path / "project").path):
        before = [Artifact(ARTIFACTS / OUTS[name]).digest for name in ("pretrain@ntp-0", "evaluate@ntp-0")]
        with other_labels():
            for name in ("pretrain@ntp-0", "evaluate@ntp-0"):
                READERS[name]()
        assert [Artifact(ARTIFACTS / OUTS[name]).digest for name in ("pretrain@ntp-0", "evaluate@ntp-0")] == before

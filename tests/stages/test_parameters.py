"""What the stages read of the parameters is what dvc.yaml says: else a change would rerun too little."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import stages.distribution
import stages.methods
import stages.pretrain
import stages.report
import stages.steer
from cocomix.params import Params, Section
from cocomix.plumbing.checked import merge, parse, read_yaml
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.sources import is_plumbing
from cocomix.report import tuning
from tests.report.made_metrics import falling, write_pipeline, write_run
from tests.steering.conftest import publish_concepts

ROOT = Path(__file__).parents[2]
METHODS = ("ntp", "kd", "pause", "mtp", "predicted", "cocomix")
SMALL = {
    "tokenize": {"vocab_size": 257, "context": 16},
    "attribution": {"k_attr": 3, "shard_tokens": 1024},
    "pretrain": {
        "methods": [*METHODS],
        "model": {"d_model": 32, "n_layer": 3, "n_head": 2},
        "training": {"steps": 2, "batch_size": 8, "eval_windows": 8},
        "pause": {"layer": 1},
        "cocomix": {"concept_layer": 1, "concept_k": 6},
        "forms": {"predicted": {"mixing": "none"}},
    },
    "steer": {
        "concepts": 2,
        "strengths": [-5, 5],
        "windows": 2,
        "prompt_tokens": 4,
        "new_tokens": 2,
        "read_windows": 2,
    },
}
"""Of the size of the fixtures."""


def parameters(*changes: Mapping[str, Any]) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    for each in (SMALL, *changes):
        merge(content, each)
    return parse(Params, content, "params.yaml")


def sections(section: Section, before: str = "") -> Iterator[tuple[str, Section]]:
    """All sections, each with what its keys begin with."""
    yield before, section
    for name in type(section).model_fields:
        if isinstance(value := getattr(section, name), Section):
            yield from sections(value, f"{before}{name}.")


def keys(content: Mapping[str, Any], section: Section, before: str) -> Iterator[str]:
    """The keys of the values that a dump of the section has."""
    for name, value in content.items():
        if isinstance(inner := vars(section)[name], Section):
            yield from keys(value, inner, f"{before}{name}.")
        else:
            yield f"{before}{name}"


class Read:
    """The keys of params.yaml that code that decides a result has read since `watch`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.keys: set[str] = set()

    def watch(self, params: Params) -> Params:
        """Note what is read of these parameters from now on; copies of a section count as read when they are made."""
        places = {id(section): before for before, section in sections(params)}
        self.keys.clear()

        def getattribute(section: Section, name: str) -> Any:
            value = object.__getattribute__(section, name)
            reader = sys._getframe(1).f_globals["__name__"]
            decides = not is_plumbing(reader) or reader.startswith("cocomix.params")
            if not decides or (before := places.get(id(section))) is None:
                return value
            if name in type(section).model_fields and not isinstance(value, Section):
                self.keys.add(f"{before}{name}")
            elif name == "model_dump":

                def dump(**options: Any) -> dict[str, Any]:
                    content: dict[str, Any] = value(**options)
                    self.keys.update(keys(content, section, before))
                    return content

                return dump
            elif name == "model_copy":
                self.keys.update(keys(vars(section), section, before))
            return value

        self._monkeypatch.setattr(Section, "__getattribute__", getattribute, raising=False)
        return params


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Notes what is read of the parameters."""
    return Read(monkeypatch)


def undeclared(found: set[str], stage: str, method: str = "") -> set[str]:
    """Of the keys that were read, those without which dvc.yaml would let the stage be."""
    entry = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]
    declared = [each.replace("${item.method}", method) for each in entry["params"] if isinstance(each, str)]
    return {key for key in found if not any(f"{key}.".startswith(f"{each}.") for each in declared)}


@pytest.fixture
def artifacts(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """artifacts/ with tokens, base, sae and concepts, small and random, and without draws."""
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    runtime.cache_clear()
    stages.distribution.run(parameters())
    return publish_concepts(base_folder, parameters().attribution)


@pytest.mark.parametrize("match", ["stored", "flops"])
@pytest.mark.parametrize("predicts", ["concepts", "hidden"])
def test_methods_reads_what_dvc_yaml_says(artifacts: Path, read: Read, match: str, predicts: str) -> None:
    changes = {"pretrain": {"match": match, "cocomix": {"predicts": predicts}}}
    stages.methods.run(read.watch(parameters(changes)))
    assert "pretrain.cocomix.tied_scale" in read.keys
    assert undeclared(read.keys, "methods") == set()


def test_the_models_and_their_steering_read_what_dvc_yaml_says(artifacts: Path, read: Read) -> None:
    params = parameters()
    stages.methods.run(params)
    for method in METHODS:
        stages.pretrain.run(read.watch(params), method, 0)
        assert "pretrain.training.learning_rate" in read.keys
        assert undeclared(read.keys, "pretrain", method) == set()
    stages.steer.run(read.watch(params))
    assert "steer.strengths" in read.keys
    assert undeclared(read.keys, "steer") == set()


def test_a_model_that_learns_hidden_states_reads_what_dvc_yaml_says(artifacts: Path, read: Read) -> None:
    params = parameters({"pretrain": {"cocomix": {"predicts": "hidden"}}})
    stages.methods.run(params)
    stages.pretrain.run(read.watch(params), "cocomix", 0)
    assert "pretrain.training.learning_rate" in read.keys
    assert undeclared(read.keys, "pretrain", "cocomix") == set()


def test_the_report_reads_what_dvc_yaml_says(folder: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = {"cocomix": {"teacher_forcing": 0.0}}
    changes, decisive = {"attribution": {"score": "integrated"}, "pretrain": forced}, tuning.decisive
    params, unwatched = parameters(changes), parameters(changes)
    # All that makes a model, to be compared with what sweeps noted: none of it changes without the figures of a stage.
    for module in (tuning, stages.report):
        monkeypatch.setattr(module, "decisive", lambda _: decisive(unwatched))
    write_pipeline()
    for method in METHODS:
        write_run(method, 0, falling(6.0, 4.0))
    stages.report.run(read.watch(params))
    assert "attribution.integrated_steps" in read.keys
    assert undeclared(read.keys, "report") == set()

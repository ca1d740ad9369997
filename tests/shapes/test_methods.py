"""What a method learns from, by its digest: it changes with that, and with nothing else."""

from pathlib import Path
from typing import Any

import pytest

from cocomix.params import MethodParams, PretrainParams, load
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.shapes.methods import METHODS, ListedMethod, read_method, read_methods, supervision
from stages.stage import to_json

SHIPPED = Path(__file__).parents[2] / "params.yaml"
FORMS: dict[str, Any] = {
    "predicted": {"mixing": "none"},
    "unlabelled": {"concept_weight": 0.0},
    "regressed": {"predicts": "hidden"},
    "control": {"predicts": "nothing"},
    "taught": {"kd": {"kl_weight": 1.0, "source": "online"}},
    "cached": {"kd": {"kl_weight": 1.0, "source": "cached"}},
}
LABELS = ["predicted", "unlabelled", "taught", "cached", "cocomix"]


@pytest.fixture
def sections() -> dict[str, MethodParams]:
    pretrain = load(SHIPPED).pretrain.model_dump() | {"methods": ["ntp", "kd", "pause", "mtp", *FORMS, "cocomix"]}
    return PretrainParams.model_validate(pretrain | {"forms": FORMS}).listed


def publish(name: str, content: str = "", about: dict[str, Any] | None = None, made: str = "one") -> None:
    """An artifact of one file."""
    with Work(name, Path("artifacts") / name, {}, {"made": made}) as work:
        with work.write("file") as pending:
            pending.path.write_text(content)
        work.finish(about or {})
        work.publish()


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"name": "concepts", "content": "others", "about": {"layer": 2}}, LABELS),
        ({"name": "concepts", "about": {"layer": 3}}, [*LABELS, "regressed"]),
        ({"name": "concepts", "about": {"layer": 2}, "made": "again"}, []),
        ({"name": "base", "content": "another"}, ["regressed", "taught"]),
        ({"name": "distribution", "content": "others"}, ["cached", "kd"]),
        ({"name": "distribution", "made": "again"}, []),
    ],
    ids=["labels", "layer", "same labels", "base", "draws", "same draws"],
)
def test_a_digest_of_supervision_changes_with_what_the_method_learns_from(
    folder: Path, sections: dict[str, MethodParams], changes: dict[str, Any], differ: list[str]
) -> None:
    def digests() -> dict[str, str]:
        return {name: supervision(section, Path("artifacts")) for name, section in sections.items()}

    publish("base")
    publish("concepts", about={"layer": 2})
    publish("distribution")
    before = digests()
    assert [name for name, digest in before.items() if not digest] == ["ntp", "pause", "mtp", "control"]
    publish(**changes)
    after = digests()
    assert {name for name in after if after[name] != before[name]} == set(differ)


def test_what_needs_no_artifact_opens_none(folder: Path, sections: dict[str, MethodParams]) -> None:
    assert supervision(sections["ntp"], Path("artifacts")) == ""
    with pytest.raises(UserError, match="artifacts/concepts"):
        supervision(sections["cocomix"], Path("artifacts"))


def test_an_entry_is_read_with_its_parameters_typed_and_a_missing_one_is_refused(
    folder: Path, sections: dict[str, MethodParams]
) -> None:
    entries = {
        name: {"kind": "ntp" if name == "ntp" else "cocomix", "parameters": section.model_dump(mode="json")}
        | {"shape": None, "supervision": "s"}
        for name, section in sections.items()
        if name in ("ntp", "taught")
    }
    with Work("methods", Path("artifacts/methods"), {}, {}) as work:
        with work.write(METHODS) as pending:
            pending.path.write_bytes(to_json(entries))
        work.finish({})
        work.publish()
    artifact = Artifact(Path("artifacts/methods"))
    assert list(read_methods(artifact)) == ["ntp", "taught"]
    assert read_method(artifact, "taught") == ListedMethod("cocomix", sections["taught"], None, "s")
    with pytest.raises(UserError, match=r"^artifacts/methods: has no method kd; run the stage 'methods' again$"):
        read_method(artifact, "kd")

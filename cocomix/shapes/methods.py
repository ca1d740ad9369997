"""The artifact `methods`: what each listed method is and learns from, by its name.

The stages of a model depend on its method's entry alone, so that what changes for one method leaves the others as they
are.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.params import (
    CocomixParams,
    KdParams,
    Method,
    MethodParams,
    MtpParams,
    NtpParams,
    PauseParams,
    reads_distribution,
    regresses,
    runs_base,
)
from cocomix.plumbing.artifact import Artifact, digest_of_json
from cocomix.plumbing.checked import parse
from cocomix.plumbing.errors import UserError

METHODS = "methods.json"
SECTIONS: dict[Method, type[MethodParams]] = {
    "ntp": NtpParams,
    "kd": KdParams,
    "pause": PauseParams,
    "mtp": MtpParams,
    "cocomix": CocomixParams,
}


class ListedMethod(NamedTuple):
    """An entry of methods.json."""

    kind: Method
    parameters: MethodParams
    shape: dict[str, Any]
    """Of its model: see `cocomix.shapes.models.shapes`."""
    supervision: str
    """See `supervision`."""


def read_methods(artifact: Artifact) -> dict[str, ListedMethod]:
    """The listed methods by name, in their order.

    Args:
        artifact: that of the stage `methods`.

    Raises:
        UserError: when it is of another version of the parameters.
    """
    path = artifact.file(METHODS)
    return {
        name: ListedMethod(
            **entry | {"parameters": parse(SECTIONS[entry["kind"]], entry["parameters"], f"{path}: {name}")}
        )
        for name, entry in json.loads(path.read_bytes()).items()
    }


def read_method(artifact: Artifact, name: str) -> ListedMethod:
    """A listed method, as `read_methods` has it.

    Raises:
        UserError: when it is not listed.
    """
    found = read_methods(artifact)
    if name not in found:
        raise UserError(f"{artifact.path}: has no method {name}; run the stage 'methods' again")
    return found[name]


def supervision(section: MethodParams, artifacts: Path) -> str:
    """Digest of what a method learns from besides the tokens; empty: nothing.

    Labels count for every model that predicts concepts: with concept_weight: 0 it does not learn from them, but its
    evaluation compares its predictions with them.

    Args:
        artifacts: the folder of the artifacts.
    """
    made: dict[str, Any] = {}
    if runs_base(section):
        made["base"] = Artifact(artifacts / "base").digest
    if regresses(section):
        made["layer"] = Artifact(artifacts / "concepts").about["layer"]
    if isinstance(section, CocomixParams) and section.predicts == "concepts":
        made["labels"] = _content(Artifact(artifacts / "concepts"))
    if reads_distribution(section):
        made["distribution"] = _content(Artifact(artifacts / "distribution"))
    return digest_of_json(made) if made else ""


def _content(artifact: Artifact) -> list[Any]:
    """What an artifact holds, wherever it comes from."""
    return [artifact.about, {name: record.sha256 for name, record in artifact.manifest.files.items()}]

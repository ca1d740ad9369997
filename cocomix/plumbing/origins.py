"""Check that artifacts belong together: the inputs that a manifest names must be the artifacts read beside it.

DVC ensures that when it runs whole pipelines; a stage run by hand, `dvc repro --single-item` or a copied folder may
break it.
"""

from collections.abc import Mapping

from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError


def check_origins(opened: Mapping[str, Artifact | str]) -> None:
    """Check that artifacts that are read together were made from each other, or from the same inputs.

    Args:
        opened: artifacts, or digests of other inputs, by the names of inputs in manifests: the folder's name in
            `artifacts/`, such as `tokens` or `models/ntp-0`.

    Raises:
        UserError: when an artifact was made from another version of an input in `opened`, or two artifacts were made
            from different versions of an input that is not in `opened`.
    """
    digests = {name: each if isinstance(each, str) else each.digest for name, each in opened.items()}
    first: dict[str, Artifact] = {}
    for artifact in (each for each in opened.values() if isinstance(each, Artifact)):
        for name, digest in artifact.manifest.inputs.items():
            if name in digests:
                if digest != digests[name]:
                    there = opened[name]
                    which = there.path if isinstance(there, Artifact) else "the one that is there"
                    raise UserError(f"{artifact.path}: made from another {name} than {which}; {_remedy(artifact)}")
            elif digest != (other := first.setdefault(name, artifact)).manifest.inputs[name]:
                raise UserError(
                    f"{other.path}, {artifact.path}: made from different {name}; {_remedy(other, artifact)}"
                )


def _remedy(*made: Artifact) -> str:
    stages = " and ".join(dict.fromkeys(each.manifest.stage for each in made))
    return f"run {stages} again (`dvc repro` runs what is needed)"

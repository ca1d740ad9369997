"""Artifacts that do not belong together are refused in one line, for every pair of names."""

from pathlib import Path

import pytest

from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.origins import check_origins


def made(name: str, stage: str, **inputs: str) -> Artifact:
    with Work(stage, Path("artifacts") / name, inputs, {}) as work:
        with work.write("file") as pending:
            pending.path.touch()
        work.finish({})
        work.publish()
    return Artifact(Path("artifacts") / name)


def test_what_was_made_from_what_is_read_is_accepted(folder: Path) -> None:
    tokens = made("tokens", "tokenize", corpus="c")
    base = made("base", "base", tokens=tokens.digest)
    sae = made("sae", "sae", base=base.digest, tokens=tokens.digest, activations="a")
    concepts = made("concepts", "attribution", base=base.digest, sae=sae.digest, tokens=tokens.digest)
    check_origins({"tokens": tokens, "base": base, "sae": sae, "concepts": concepts})
    check_origins({"tokens": tokens, "concepts": concepts, "supervision.cocomix": "s"})
    check_origins({"concepts": concepts, "base": base})


def test_what_was_made_from_another_artifact_is_refused(folder: Path) -> None:
    tokens = made("tokens", "tokenize", corpus="c")
    base = made("base", "base", tokens="others")
    with pytest.raises(UserError) as refused:
        check_origins({"base": base, "tokens": tokens})
    assert str(refused.value) == (
        "artifacts/base: made from another tokens than artifacts/tokens; "
        "run base again (`dvc repro` runs what is needed)"
    )


def test_what_was_made_from_another_digest_is_refused(folder: Path) -> None:
    model = made("models/cocomix-0", "pretrain@cocomix-0", **{"supervision.cocomix": "s"})
    check_origins({"model": model, "supervision.cocomix": "s"})
    with pytest.raises(
        UserError, match=r"^artifacts/models/cocomix-0: made from another supervision\.cocomix than the "
    ):
        check_origins({"model": model, "supervision.cocomix": "t"})


def test_two_that_were_made_from_different_inputs_are_refused_though_the_input_is_not_read(folder: Path) -> None:
    concepts, methods = made("concepts", "attribution", sae="one"), made("methods", "methods", sae="other")
    with pytest.raises(UserError) as refused:
        check_origins({"concepts": concepts, "methods": methods})
    assert str(refused.value) == (
        "artifacts/concepts, artifacts/methods: made from different sae; "
        "run attribution and methods again (`dvc repro` runs what is needed)"
    )
    check_origins({"concepts": concepts})

"""A project with everything that the page shows: small, random, and of one piece."""

import shutil
from pathlib import Path

import pytest

from cocomix.artifact import Artifact, Work
from cocomix.base import load_base
from cocomix.explain import Atlas
from cocomix.explain.making import make_atlas
from cocomix.explore.session import Session
from cocomix.sae.autoencoder import load_sae
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT
from tests.explain.test_making import PARAMS
from tests.steering.conftest import CONCEPTS, artifacts, fp32

__all__ = ["artifacts", "fp32"]

EXPLAIN = PARAMS.model_copy(update={"contexts": 8, "shard_windows": 64})


@pytest.fixture
def atlas(artifacts: Path) -> Atlas:
    base, sae = load_base(Artifact(artifacts / "base"), CONTEXT), load_sae(Artifact(artifacts / "sae"))
    with Work("explain", artifacts / "atlas", {}, {}) as work:
        make_atlas(work, base, sae, Tokens(artifacts / "tokens"), EXPLAIN)
        work.finish({"concepts": CONCEPTS, "context": CONTEXT})
        work.publish()
    return Atlas(artifacts / "atlas")


@pytest.fixture
def session(artifacts: Path, atlas: Atlas) -> Session:
    shutil.copy(Path(__file__).parents[2] / "params.yaml", ".")
    return Session(artifacts / "models/cocomix-0", artifacts)

"""A project with everything that the page shows: small, random, and of one piece."""

import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cocomix.base.loading import load_base
from cocomix.explain.atlas import Atlas
from cocomix.explain.build import make_atlas
from cocomix.explore.session import Session
from cocomix.params import FILE
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from cocomix.predictions.measure import measure_predictions
from cocomix.predictions.table import PREDICTED, predictions_table
from cocomix.sae.autoencoder import load_sae
from cocomix.shapes.methods import supervision
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT
from tests.explain.test_build import PARAMS
from tests.shipped import paper_form, paper_params
from tests.steering.conftest import CONCEPTS, artifacts, fp32, made_artifacts, set_fp32

__all__ = ["artifacts", "fp32", "made_artifacts"]

EXPLAIN = PARAMS.model_copy(update={"contexts": 8, "shard_tokens": 1024})


@pytest.fixture(scope="session")
def made_atlas(made_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `atlas` is a copy of."""
    with chdir(tmp_path_factory.mktemp("atlas")), pytest.MonkeyPatch.context() as patch:
        set_fp32(patch)
        artifacts = made_artifacts / "artifacts"
        base, sae = load_base(Artifact(artifacts / "base"), CONTEXT), load_sae(Artifact(artifacts / "sae"))
        with Work("explain", Path("artifacts/atlas"), {}, {}) as work:
            make_atlas(work, base, sae, BaseTokens(artifacts), EXPLAIN)
            work.finish({"concepts": CONCEPTS, "context": CONTEXT})
            work.publish()
        made = Path.cwd()
    runtime.cache_clear()
    return made


@pytest.fixture
def atlas(artifacts: Path, made_atlas: Path) -> Atlas:
    shutil.copytree(made_atlas, Path.cwd(), dirs_exist_ok=True)
    return Atlas(artifacts / "atlas")


@pytest.fixture
def steering(artifacts: Path, atlas: Atlas) -> Path:
    """What the model, now an artifact, makes of each concept: as of stage `steer`."""
    folder, tokens = artifacts / "models/cocomix-0", Tokens(artifacts / "tokens")
    section = paper_params().pretrain.cocomix
    inputs, params = {"supervision.cocomix": supervision(section, artifacts)}, {"cocomix": section.model_dump()}
    with Work("pretrain", folder, inputs, params) as work:
        with work.write_folder() as target:
            shutil.copytree(folder, target, dirs_exist_ok=True)
        work.finish({"method": "cocomix"})
        work.publish()
    ids = torch.from_numpy(tokens.windows("validation")[:6].astype(np.int64))
    labels = torch.arange(ids.numel()).view(*ids.shape, 1) % CONCEPTS
    found = measure_predictions(load_base(Artifact(folder), CONTEXT), ids, labels, promoted=5, kept=artifacts / "kept")
    with Work("steer", artifacts / "steering", {"models/cocomix-0": Artifact(folder).digest}, {}) as work:
        with work.write(PREDICTED) as pending:
            pq.write_table(predictions_table("cocomix-0", found, range(6), ids.tolist()), pending.path)
        work.finish({"models": ["cocomix-0"]})
        work.publish()
    return artifacts / "steering"


@pytest.fixture
def session(artifacts: Path, atlas: Atlas) -> Session:
    FILE.write_text(paper_form())
    return Session(artifacts / "models/cocomix-0", artifacts)

"""A small activation store of sparse combinations of known directions."""

import numpy as np
import pytest

from cocomix.activations.store import Activations, ActivationStore, write_activations
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from tests.activations.conftest import setting

__all__ = ["setting"]

D_MODEL = 16


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    runtime.cache_clear()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """4096 training and 512 validation vectors: each the sum of 3 of 24 directions, off the origin."""
    folder = tmp_path_factory.mktemp("store")
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((24, D_MODEL))
    with Work("activations", folder / "out", {}, {}, root=folder / "work") as work:
        for split, rows in {"train": 4096, "validation": 512}.items():
            chosen = generator.random((rows, 24)).argsort(1)[:, :3]
            weights = generator.uniform(1, 2, size=(rows, 3))
            x = (weights[:, :, None] * directions[chosen]).sum(1) + 5
            origin = np.zeros(rows, np.uint32)
            with work.write(f"resid_post_1/{split}-00000.parquet") as pending:
                write_activations(pending.path, Activations(x.astype(np.float16), origin, origin, origin), 128)
                pending.rows = rows
        work.finish(
            {
                "d_model": D_MODEL,
                "sites": ["resid_post_1"],
                "dtype": "fp16",
                "row_group_tokens": 128,
                "mixed_shards": None,
            }
        )
        work.publish()
    return ActivationStore(Artifact(folder / "out"))

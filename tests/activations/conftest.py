"""A small base model and its tokens, and activations made from them."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import PreTrainedModel

from cocomix.activations.collect import collect
from cocomix.base.loading import load_base
from cocomix.params import ActivationsParams
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT

PARAMS = ActivationsParams(
    sites=["resid_post_2"], tokens=1000, validation_tokens=100, shard_tokens=400, row_group_tokens=100, seed=3
)
SITE = "resid_post_2/"


def but(**changes: Any) -> ActivationsParams:
    """`PARAMS` with changes, checked."""
    return ActivationsParams.model_validate(PARAMS.model_dump() | changes)


class Setting(NamedTuple):
    tokens: Tokens
    model: PreTrainedModel

    def collect(self, params: ActivationsParams = PARAMS, jobs: int = 1, key: str = "") -> Artifact:
        """The artifact, made by `jobs` processes one after the other."""
        out = Path(f"artifacts/activations{jobs}{key}")
        with (
            Work("activations", out, {"run": f"{jobs}{key}"}, params.model_dump()) as work,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(distributed, "gathered", lambda value: [value])
            patch.setattr(distributed, "from_first", lambda value: value)
            for rank in range(jobs):
                patch.setenv("RANK", str(rank))
                patch.setenv("WORLD_SIZE", str(jobs))
                about = collect(work, self.model, self.tokens, params)
            patch.undo()
            work.finish(about)
            work.publish()
        return Artifact(out)


@pytest.fixture
def setting(base_folder: Path, tokens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "13")
    runtime.cache_clear()
    return Setting(Tokens(tokens_folder), load_base(Artifact(base_folder), CONTEXT))

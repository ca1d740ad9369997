"""A base model and the tokens that it reads."""

from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedModel

from cocomix.base.loading import load_base
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens
from tests.conftest import CONTEXT


class Setting(NamedTuple):
    model: PreTrainedModel
    tokens: Tokens


@pytest.fixture
def setting(base_folder: Path, tokens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """In fp32."""
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "7")
    runtime.cache_clear()
    return Setting(load_base(Artifact(base_folder), CONTEXT), Tokens(tokens_folder))

"""A base model, an autoencoder that fits it, and the tokens that both read."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.loading import load_base
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.tokens.base_tokens import BaseTokens
from tests.conftest import CONTEXT

LAYER, LATENTS, K = 2, 40, 6


class Setting(NamedTuple):
    model: PreTrainedModel
    sae: SparseAutoencoder
    tokens: BaseTokens

    def ids(self, windows: int) -> Tensor:
        return torch.from_numpy(self.tokens.windows("train")[:windows].astype(np.int64))


@pytest.fixture(params=["token"])
def setting(
    base_folder: Path, tokens_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Setting:
    """In fp32; `request.param` is how the autoencoder normalises."""
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "7")
    runtime.cache_clear()
    torch.manual_seed(1)
    config = SaeConfig(d_model=32, latents=LATENTS, k=K, normalize=request.param, layer=LAYER)
    sae = SparseAutoencoder(config).requires_grad_(False)
    sae.decoder.copy_(torch.nn.functional.normalize(torch.randn(LATENTS, 32), dim=1))
    sae.encoder.copy_(sae.decoder)
    sae.latent_bias.normal_(std=0.1)
    sae.pre_bias.normal_(std=0.1)
    return Setting(load_base(Artifact(base_folder), CONTEXT), sae, BaseTokens())

"""A small finished pipeline: base model, autoencoder, labels, a CoCoMix model; all random, and fitting each other."""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cocomix.attribution.build import make_labels
from cocomix.base.loading import load_base
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.params import AttributionParams
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder, load_sae
from cocomix.steering.reading import Extractor
from cocomix.tokens.base_tokens import BaseTokens
from cocomix.tokens.windows import Tokens
from tests.conftest import publish_base, publish_tokens
from tests.modeling.conftest import tiny

PARAMS = AttributionParams(k_attr=3, score="gradient", sign="released", shard_tokens=1024)
CONCEPTS, LAYER = 40, 2


class Setting(NamedTuple):
    model: CoCoMixForCausalLM
    tokenizer: PreTrainedTokenizerFast
    extractor: Extractor
    tokens: Tokens


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    set_fp32(monkeypatch)


def set_fp32(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("COCOMIX_PRECISION", "fp32")
    patch.setenv("COCOMIX_DEVICE", "cpu")
    patch.setenv("COCOMIX_MICRO_BATCH", "3")
    runtime.cache_clear()


def autoencoder(**changes: object) -> SparseAutoencoder:
    """Random, of 40 latents for width 32."""
    torch.manual_seed(1)
    config = {"d_model": 32, "latents": CONCEPTS, "k": 6, "normalize": "token", "layer": LAYER} | changes
    sae = SparseAutoencoder(SaeConfig(**config)).requires_grad_(False)
    sae.decoder.copy_(torch.nn.functional.normalize(torch.randn_like(sae.decoder), dim=1))
    sae.encoder.copy_(sae.decoder)
    sae.latent_bias.normal_(std=0.1)
    sae.pre_bias.normal_(std=0.1)
    if sae.config.normalize == "whiten":
        sae.mean.normal_(std=0.1)
        sae.std.uniform_(0.5, 1.5)
    return sae


def publish_concepts(base_folder: Path, params: AttributionParams) -> Path:
    """Publish sae and concepts beside base and tokens; the folder of all four."""
    root = base_folder.parent
    with Work("sae", root / "sae", {}, {}) as work:
        with work.write_folder() as target:
            autoencoder().save(target)
        work.finish({"concepts": CONCEPTS, "layer": LAYER})
        work.publish()
    base, tokens = load_base(Artifact(base_folder), 16), BaseTokens(root)
    inputs = {name: Artifact(root / name).digest for name in ("base", "sae", "tokens")}
    with Work("attribution", root / "concepts", inputs, params.model_dump()) as work:
        work.finish(make_labels(work, base, load_sae(Artifact(root / "sae")), tokens, params))
        work.publish()
    return root


@pytest.fixture(scope="session")
def made_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `artifacts` are copies of."""
    with chdir(tmp_path_factory.mktemp("made")), pytest.MonkeyPatch.context() as patch:
        set_fp32(patch)
        publish_tokens()
        root = publish_concepts(publish_base(), PARAMS)
        folder = root / "models/cocomix-0"
        tiny(vocab_size=64, num_concepts=CONCEPTS).save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(root / "tokens/tokenizer").save_pretrained(folder)
        made = Path.cwd()
    runtime.cache_clear()
    return made


@pytest.fixture
def artifacts(made_artifacts: Path, folder: Path) -> Path:
    """artifacts/ with base, sae, tokens, concepts and models/cocomix-0."""
    shutil.copytree(made_artifacts, folder, dirs_exist_ok=True)
    return Path("artifacts")


@pytest.fixture
def setting(base_folder: Path, tokens_folder: Path) -> Setting:
    """The same in memory, without labels."""
    extractor = Extractor(load_base(Artifact(base_folder), 16), autoencoder(), PARAMS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens_folder / "tokenizer")
    return Setting(tiny(vocab_size=64, num_concepts=CONCEPTS), tokenizer, extractor, Tokens(tokens_folder))


def windows(setting: Setting, count: int) -> torch.Tensor:
    return torch.from_numpy(setting.tokens.windows("validation")[:count].astype(np.int64))

"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093, as in OpenAI's v5 files)."""

from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cocomix.artifact import Artifact
from cocomix.device import device
from cocomix.sae.sparse import dots, top_indices, weighted_sum

WEIGHTS, CONFIG = "sae.safetensors", "config.json"


class SaeConfig(BaseModel):
    """The content of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["topk"] = "topk"
    d_model: int
    latents: int
    k: int
    normalize: Literal["none", "token"]
    layer: int
    """Blocks of the base model below the residual stream that it was trained on."""


class Latents(NamedTuple):
    """The active latents of each row; one with the value 0 is not active."""

    indices: Tensor
    """int64 [n, k], in no order."""
    values: Tensor
    """[n, k], not negative."""


class Normalized(NamedTuple):
    """Rows in the autoencoder's own scale: `x * std + mean` are the activations."""

    x: Tensor
    """[n, d_model]."""
    mean: Tensor
    """[n, 1]."""
    std: Tensor
    """[n, 1]."""


class SparseAutoencoder(nn.Module):
    """Latents are the k largest of `encoder @ (x - pre_bias) + latent_bias`, where they are positive.

    Weights: `encoder` and `decoder` [latents, d_model], a row a latent; `latent_bias` [latents]; `pre_bias` [d_model].
    They work on normalised activations.
    """

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Parameter(torch.empty(config.latents, config.d_model))
        self.decoder = nn.Parameter(torch.empty(config.latents, config.d_model))
        self.latent_bias = nn.Parameter(torch.zeros(config.latents))
        self.pre_bias = nn.Parameter(torch.zeros(config.d_model))

    def normalize(self, x: Tensor) -> Normalized:
        """Activations [n, d_model] in the autoencoder's scale, which statistics of each row restore."""
        if self.config.normalize == "none":
            zeros = x.new_zeros(len(x), 1)
            return Normalized(x, zeros, zeros + 1)
        # Unbiased, and the epsilon beside it: OpenAI's, not torch's layer_norm.
        mean = x.mean(-1, keepdim=True)
        centered = x - mean
        std = (centered.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt() + 1e-5
        return Normalized(centered / std, mean, std)

    def encode(self, x: Tensor) -> Latents:
        """The latents of normalised activations [n, d_model]."""
        centered = x - self.pre_bias
        indices = top_indices(centered, self.encoder, self.latent_bias, self.config.k)
        values = dots(centered, self.encoder, indices) + self.latent_bias[indices]
        return Latents(indices, values.relu())

    def decode(self, latents: Latents) -> Tensor:
        """The normalised activations that latents stand for: [n, d_model]."""
        return weighted_sum(latents.values, self.decoder, latents.indices) + self.pre_bias

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct activations [n, d_model], in their own scale."""
        normalized = self.normalize(x)
        return self.decode(self.encode(normalized.x)) * normalized.std + normalized.mean

    def save(self, folder: Path) -> None:
        """Write sae.safetensors and config.json."""
        save_file({name: each.cpu().contiguous() for name, each in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        sae = cls(SaeConfig.model_validate_json((folder / CONFIG).read_bytes()))
        sae.load_state_dict(load_file(folder / WEIGHTS))
        return sae


def load_sae(artifact: Artifact) -> SparseAutoencoder:
    """The autoencoder of an artifact, frozen, on this process's device."""
    return SparseAutoencoder.load(artifact.verified()).requires_grad_(False).to(device())

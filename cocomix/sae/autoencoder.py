"""Sparse autoencoders: one encoder and decoder; the architecture determines which latents are active.

topk: the k largest (Gao et al. 2024, arXiv 2406.04093, as in OpenAI's v5 files). abstopk: the k largest in magnitude,
of either sign. relu: the positive ones. jumprelu: those above a learned threshold per latent (Rajamanoharan et al.
2024, arXiv 2407.14435). batchtopk: in training, the k times batch size largest of a batch; afterwards, those above the
average threshold of training (Bussmann et al. 2024, arXiv 2412.06410). matryoshka: batchtopk in which prefixes of the
latents are autoencoders by themselves (Bussmann et al. 2025, arXiv 2503.17547).
"""

from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cocomix.params import Architecture, Location, Normalization
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.device import device, no_autocast
from cocomix.plumbing.errors import UserError
from cocomix.sae.sparse import dots, indices_above, top_indices, weighted_sum

WEIGHTS, CONFIG = "sae.safetensors", "config.json"
ALSO = "also"
"""The artifact's folder with a subfolder for each of `sae.also`."""


class SaeConfig(BaseModel):
    """The content of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "topk"
    d_model: int
    latents: int
    k: int
    """Latents that topk and abstopk select per row; in the other architectures, the number of active ones varies."""
    normalize: Normalization
    layer: int
    """The block of the base model, from 1, on whose activations it was trained."""
    location: Location = "resid_post"
    """The location in that block."""

    @property
    def concepts(self) -> int:
        """Number of concepts: one per latent; in abstopk, one per latent and sign."""
        return self.latents * (2 if self.architecture == "abstopk" else 1)


class Latents(NamedTuple):
    """The active latents of each row; one with the value 0 is not active."""

    indices: Tensor
    """int64 [n, width], unordered; width is k, or more where the number of active latents varies."""
    values: Tensor
    """[n, width], non-negative except in abstopk."""


class Normalized(NamedTuple):
    """Normalised rows; `x * std + mean` de-normalises them, up to the epsilon of 1e-5 of the normalisation `token`."""

    x: Tensor
    """[n, d_model]."""
    mean: Tensor
    """[n, 1]; with whiten, which `folded` removes, [d_model]."""
    std: Tensor
    """The same shape as `mean`."""


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder: the architecture selects the active latents of `encoder @ (x - pre_bias) + latent_bias`.

    Weights: `encoder` and `decoder` [latents, d_model], a row per latent; `latent_bias` [latents]; `pre_bias`
    [d_model]; `threshold` [latents] in all architectures but topk and abstopk. They apply to normalised activations;
    whiten stores `mean` and `std` [d_model]. Autocast has no effect: rounding would move latents across thresholds.
    """

    threshold: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Parameter(torch.empty(config.latents, config.d_model))
        self.decoder = nn.Parameter(torch.empty(config.latents, config.d_model))
        self.latent_bias = nn.Parameter(torch.zeros(config.latents))
        self.pre_bias = nn.Parameter(torch.zeros(config.d_model))
        match config.architecture:
            case "jumprelu":
                self.threshold = nn.Parameter(torch.zeros(config.latents))
            case "batchtopk" | "matryoshka":
                self.register_buffer("threshold", torch.zeros(config.latents))
            case "relu":
                self.register_buffer("threshold", torch.zeros(config.latents), persistent=False)
        if config.normalize == "whiten":
            self.register_buffer("mean", torch.zeros(config.d_model))
            self.register_buffer("std", torch.ones(config.d_model))

    def normalize(self, x: Tensor) -> Normalized:
        """Normalise activations [n, d_model]; the returned statistics de-normalise them."""
        match self.config.normalize:
            case "none":
                zeros = x.new_zeros(len(x), 1)
                return Normalized(x, zeros, zeros + 1)
            case "token":
                # As OpenAI's code, not torch's layer_norm: unbiased std, epsilon added to it when normalising only.
                mean = x.mean(-1, keepdim=True)
                centered = x - mean
                std = (centered.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
                return Normalized(centered / (std + 1e-5), mean, std)
            case "whiten":
                return Normalized((x - self.mean) / self.std, self.mean, self.std)

    def encode(self, x: Tensor) -> Latents:
        """Encode normalised activations [n, d_model]; the latents of a row depend on no other row."""
        with no_autocast():
            centered = x - self.pre_bias
            match self.config.architecture:
                case "topk":
                    indices = top_indices(centered, self.encoder, self.latent_bias, self.config.k)
                    return Latents(indices, self.pre_activations(centered, indices).relu())
                case "abstopk":
                    indices = top_indices(centered, self.encoder, self.latent_bias, self.config.k, by_size=True)
                    return Latents(indices, self.pre_activations(centered, indices))
                case _:
                    over = self.latent_bias - self.threshold
                    indices, taken = indices_above(centered, self.encoder, over, least=self.config.k)
                    values = self.pre_activations(centered, indices)
                    return Latents(indices, values * (taken & (values > self.threshold[indices])))

    def pre_activations(self, centered: Tensor, indices: Tensor) -> Tensor:
        """Pre-activations of selected latents: [n, width].

        Args:
            centered: normalised activations without the pre-bias, [n, d_model].
            indices: int64 [n, width].
        """
        return dots(centered, self.encoder, indices) + self.latent_bias[indices]

    def decode(self, latents: Latents) -> Tensor:
        """Decode latents to normalised activations: [n, d_model]."""
        with no_autocast():
            return weighted_sum(latents.values, self.decoder, latents.indices) + self.pre_bias

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct activations [n, d_model], de-normalised."""
        normalized = self.normalize(x)
        return self.decode(self.encode(normalized.x)) * normalized.std + normalized.mean

    def as_concepts(self, latents: Latents) -> Latents:
        """Replace latent indices by concept numbers, below `config.concepts`.

        The concept of a latent is its index, plus `config.latents` where its value is negative (abstopk).
        """
        if self.config.architecture != "abstopk":
            return latents
        return latents._replace(indices=latents.indices + self.config.latents * (latents.values < 0))

    @torch.no_grad()
    def folded(self) -> "SparseAutoencoder":
        """An equivalent autoencoder with whiten's mean and std folded into the weights; others as they are."""
        if self.config.normalize != "whiten":
            return self
        folded = SparseAutoencoder(self.config.model_copy(update={"normalize": "none"}))
        state = {name: each.clone() for name, each in self.state_dict().items() if name not in ("mean", "std")}
        state["encoder"] /= self.std
        state["decoder"] *= self.std
        state["pre_bias"] = self.pre_bias * self.std + self.mean
        folded.load_state_dict(state)
        return folded.to(self.std.device)

    def save(self, folder: Path) -> None:
        """Write sae.safetensors and config.json."""
        save_file({name: each.cpu().contiguous() for name, each in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an autoencoder that `save` wrote.

        Raises:
            UserError: when the configuration is invalid or does not match the weights.
        """
        try:
            config, weights = SaeConfig.model_validate_json((folder / CONFIG).read_bytes()), load_file(folder / WEIGHTS)
            if (shape := weights["encoder"].shape) != (config.latents, config.d_model):
                raise ValueError(f"{CONFIG} is of [{config.latents}, {config.d_model}], the weights of {list(shape)}")
            sae = cls(config)
            sae.load_state_dict(weights)
        except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder}: no autoencoder can be read: {type(error).__name__}: {reason}") from None
        return sae


def load_sae(artifact: Artifact, also: str | None = None) -> SparseAutoencoder:
    """Load an autoencoder of an artifact, frozen, on this process's device.

    Args:
        also: name of an autoencoder of `sae.also`; None: the main one, whose latents are the concepts.

    Raises:
        UserError: when no autoencoder has that name.
    """
    folder = artifact.verified()
    if also is not None:
        folder = folder / ALSO / also
        names = sorted(each.split("/")[1] for each in artifact.names(f"{ALSO}/") if each.endswith(CONFIG))
        if also not in names:
            raise UserError(
                f"{artifact.path}: {also!r}: no such autoencoder; sae.also has {', '.join(names) or 'none'}"
            )
    return SparseAutoencoder.load(folder).requires_grad_(False).to(device())

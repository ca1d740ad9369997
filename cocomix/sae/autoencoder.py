"""Sparse autoencoders: one encoder and decoder, of which an architecture decides the latents that are active.

topk: the k largest (Gao et al. 2024, arXiv 2406.04093, as in OpenAI's v5 files). abstopk: the k of largest size, either
sign. relu: the positive ones. jumprelu: those above a threshold of their own, learned (Rajamanoharan et al. 2024, arXiv
2407.14435). batchtopk: the k times batch size largest of a batch while training, and those above the threshold that
this came to on average afterwards (Bussmann et al. 2024, arXiv 2412.06410). matryoshka: as batchtopk, where the first
latents alone are an autoencoder too (Bussmann et al. 2025, arXiv 2503.17547).
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
"""The folder of the artifact that has a folder for each of `sae.also`."""


class SaeConfig(BaseModel):
    """The content of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "topk"
    d_model: int
    latents: int
    k: int
    """Active latents of a row; but relu and jumprelu, batchtopk and matryoshka have as many as come out."""
    normalize: Normalization
    layer: int
    """The block of the base model, from 1, whose activations it was trained on."""
    location: Location = "resid_post"
    """Where in that block."""

    @property
    def concepts(self) -> int:
        """What a label can be: the latents, of abstopk each once for either sign."""
        return self.latents * (2 if self.architecture == "abstopk" else 1)


class Latents(NamedTuple):
    """The active latents of each row; one with the value 0 is not active."""

    indices: Tensor
    """int64 [n, width], in no order; width is k, or more where the number of active ones varies."""
    values: Tensor
    """[n, width], not negative but in abstopk."""


class Normalized(NamedTuple):
    """Rows in the autoencoder's own scale; `x * std + mean` is the way back, but for token's 1e-5 on the way in."""

    x: Tensor
    """[n, d_model]."""
    mean: Tensor
    """[n, 1]; of whiten, which `folded` does away with, [d_model]."""
    std: Tensor
    """Of the shape of `mean`."""


class SparseAutoencoder(nn.Module):
    """Latents are values of `encoder @ (x - pre_bias) + latent_bias`, those that the architecture lets through.

    Weights: `encoder` and `decoder` [latents, d_model], a row a latent; `latent_bias` [latents]; `pre_bias` [d_model];
    `threshold` [latents] in all architectures but topk and abstopk. They work on normalised activations; whiten keeps
    `mean` and `std` [d_model]. Inside autocast they compute as outside: rounded latents would miss their thresholds.
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
        """Activations [n, d_model] in the autoencoder's scale, which the statistics restore."""
        match self.config.normalize:
            case "none":
                zeros = x.new_zeros(len(x), 1)
                return Normalized(x, zeros, zeros + 1)
            case "token":
                # Unbiased, and the epsilon beside it, on the way in alone: OpenAI's, not torch's layer_norm.
                mean = x.mean(-1, keepdim=True)
                centered = x - mean
                std = (centered.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
                return Normalized(centered / (std + 1e-5), mean, std)
            case "whiten":
                return Normalized((x - self.mean) / self.std, self.mean, self.std)

    def encode(self, x: Tensor) -> Latents:
        """The latents of normalised activations [n, d_model]; those of a row depend on no other row."""
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
        """Some latents before the activation function: [n, width].

        Args:
            centered: normalised activations without the pre-bias, [n, d_model].
            indices: int64 [n, width].
        """
        return dots(centered, self.encoder, indices) + self.latent_bias[indices]

    def decode(self, latents: Latents) -> Tensor:
        """The normalised activations that latents stand for: [n, d_model]."""
        with no_autocast():
            return weighted_sum(latents.values, self.decoder, latents.indices) + self.pre_bias

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct activations [n, d_model], in their own scale."""
        normalized = self.normalize(x)
        return self.decode(self.encode(normalized.x)) * normalized.std + normalized.mean

    def as_concepts(self, latents: Latents) -> Latents:
        """Latents with the numbers of concepts, below `config.concepts`, for indices.

        A latent's concept is its index; with abstopk, where its value is negative, `config.latents` more.
        """
        if self.config.architecture != "abstopk":
            return latents
        return latents._replace(indices=latents.indices + self.config.latents * (latents.values < 0))

    @torch.no_grad()
    def folded(self) -> "SparseAutoencoder":
        """The same autoencoder without a scale of the dimensions: whiten's is made a part of the weights."""
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
        """Read what `save` wrote.

        Raises:
            UserError: when the configuration is none, or of other weights than lie there.
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
    """The autoencoder of an artifact, frozen, on this process's device.

    Args:
        also: which of the further ones, by its name in `sae.also`; none: that whose latents are the concepts.

    Raises:
        UserError: when none has that name.
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

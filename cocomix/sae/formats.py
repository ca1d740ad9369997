"""Read autoencoders of other libraries, and write autoencoders in their formats.

openai    a .pt file of OpenAI's sparse_autoencoder (v5: TopK on activations normalised per token)
sae-lens  a folder with cfg.json and sae_weights.safetensors
sparsify  a folder with cfg.json and sae.safetensors (EleutherAI's)

What cannot be represented exactly in the target format is refused, with the name of the field.
"""

import json
import pickle
import re
import reprlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cocomix.params import Location, SaeFormat, SaeParams, Site
from cocomix.plumbing.artifact import as_any_new
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.foreign import check_regular, read_json
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder

CONFIG = "cfg.json"
SAE_LENS_WEIGHTS, SPARSIFY_WEIGHTS = "sae_weights.safetensors", "sae.safetensors"
SAE_LENS_VERSION = "6.54.12"
"""The version whose layout is written; SAELens reads a config without a version as one from before 6.0."""


_SAE_LENS_ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "abstopk": "abstopk"}
"""SAELens's names to ours. Both write trained batchtopk and matryoshka autoencoders as jumprelu."""


_OPENAI_LOCATIONS: dict[str, Location] = {
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
    "resid_delta_attn": "attn_out",
    "resid_delta_mlp": "mlp_out",
}

_SPARSIFY_LOCATIONS: dict[str | None, Location] = {
    None: "resid_post",
    ".attn": "attn_out",
    ".self_attn": "attn_out",
    ".attention": "attn_out",
    ".mlp": "mlp_out",
}
"""Locations by the end of the hooked module's name: its output is the activation."""


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Fields:
    """A config or state dict of another library; a missing or unsupported field raises an error with its name."""

    def __init__(self, source: Path, fields: Any) -> None:
        if not isinstance(fields, Mapping):
            raise UserError(f"{source}: holds a {type(fields).__name__} where fields with names are expected")
        self.source, self._fields = source, fields

    def __getitem__(self, name: str) -> Any:
        if self._fields.get(name) is None:
            raise UserError(f"{self.source}: {name}: missing")
        return self._fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def inner(self, name: str) -> "_Fields":
        """The fields nested in a field; empty if it is missing."""
        return _Fields(self.source, self._fields.get(name) or {})

    def require(self, name: str, *allowed: Any) -> Any:
        """The field's value, which must be one of `allowed`; the first of them if the field is missing."""
        value = self._fields.get(name, allowed[0])
        if isinstance(value, Tensor) or value not in allowed:
            listed = ", ".join(repr(each) for each in allowed)
            raise UserError(f"{self.source}: {name}: {reprlib.repr(value)} cannot be represented; allowed: {listed}")
        return value

    def count(self, name: str) -> int:
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.source}: {name}: {reprlib.repr(value)}: must be a whole number above 0")
        return value

    def length(self, name: str) -> int:
        """The length of a one-dimensional tensor."""
        value = self[name]
        if not isinstance(value, Tensor) or value.dim() != 1:
            raise UserError(f"{self.source}: {name}: must be a tensor of one dimension")
        self._check_plain(name, value)
        return len(value)

    def tensor(self, name: str, *shape: int) -> Tensor:
        value = self[name]
        if not isinstance(value, Tensor) or value.shape != shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{self.source}: {name}: must be a tensor of shape {list(shape)}, not {found}")
        self._check_plain(name, value)
        if not value.isfinite().all():
            raise UserError(f"{self.source}: {name}: holds numbers that are not finite")
        return value.float()

    def _check_plain(self, name: str, value: Tensor) -> None:
        """Check that a tensor's storage holds all its elements: a file of a few bytes can claim any shape."""
        is_plain = value.layout is torch.strided and value.device.type == "cpu" and value.dtype in _FLOATS
        if not is_plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            kind = f"{value.dtype} {value.layout} on {value.device.type}, {value.numel()} numbers".replace("torch.", "")
            raise UserError(f"{self.source}: {name}: is {kind}; must be a plain tensor of 16 to 64 bit numbers")


class _Foreign(NamedTuple):
    """An autoencoder that was read, in the terms of `SparseAutoencoder`."""

    config: dict[str, Any]
    """Fields of `SaeConfig`, without the site, and without k where the architecture has none."""
    weights: Callable[[], dict[str, Tensor]]
    """Reads the state dict of `SparseAutoencoder`."""
    site: Site | None
    """The site that the files state; None: they state none."""


def load_published(path: Path, format: SaeFormat, site: Site, k: int) -> SparseAutoencoder:
    """Read an autoencoder of another library; no code in its files is executed.

    Args:
        path: a file (openai) or a folder.
        site: its site in the base model, used if the files state none.
        k: `SaeConfig.k`, used where the architecture has none.

    Raises:
        UserError: one line, when the files are not of that format, or cannot be represented.
    """
    with _one_line(path, format):
        found = _READERS[format](path)
        config = _config_of(found, path, site, k)
        weights = found.weights()
    sae = SparseAutoencoder(config)
    sae.load_state_dict({name: weight.contiguous() for name, weight in weights.items()})
    return sae


def published_config(path: Path, format: SaeFormat, site: Site, k: int) -> SaeConfig:
    """The configuration that `load_published` would find, without reading the weights.

    Raises:
        UserError: as `load_published`, except for what is wrong with the weights.
    """
    with _one_line(path, format):
        return _config_of(_READERS[format](path), path, site, k)


def check_published(config: SaeConfig, section: SaeParams, site: Site, d_model: int | None) -> None:
    """Check that a published autoencoder is what parameters say, and that it belongs to the activations.

    Args:
        config: the autoencoder's.
        site: the site of the activations.
        d_model: the dimensions of the base model; None: unknown.

    Raises:
        UserError: for the first difference.
    """
    path = section.published.path
    for key in ("architecture", "latents", "k", "normalize"):
        asked, found = getattr(section, key), getattr(config, key)
        if asked != found:
            raise UserError(f"sae.{key}: {asked!r}: the autoencoder in {path} has {found!r}")
    if d_model not in (None, config.d_model):
        raise UserError(
            f"sae.published: {path} is of a base model of {config.d_model} dimensions; this one has {d_model}"
        )
    theirs = Site(config.location, config.layer)
    if theirs != site:
        raise UserError(f"sae.published: {path} is of {theirs}; the activations are of {site} (activations.sites)")


def check_model(section: SaeParams, base: str | None) -> None:
    """Check that a published autoencoder is of the base model, where both have a name.

    Args:
        base: `base.pretrained`; None: the base model is trained here.

    Raises:
        UserError: when they have different names.
    """
    path = section.published.path
    theirs = model_named(Path(str(path)), section.published.format)
    # A local folder may have any name.
    if theirs and base and not Path(base).exists() and not is_same_model(theirs, base):
        raise UserError(
            f"sae.published: {path} is of the model {theirs!r}; the base model is {base!r} (base.pretrained); where "
            "both are names of one model, remove model_name from its cfg.json"
        )


def _config_of(found: _Foreign, path: Path, site: Site, k: int) -> SaeConfig:
    if found.config.get("k", 1) > found.config["latents"]:
        raise UserError(f"{path}: k: {found.config['k']}: more than its {found.config['latents']} latents")
    location, layer = found.site or site
    return SaeConfig(**({"k": k} | found.config), location=location, layer=layer)


@contextmanager
def _one_line(path: Path, format: SaeFormat) -> Iterator[None]:
    """Turn any error of reading the files of an autoencoder into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read as {format}: {error.strerror}: {error.filename}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as {format}: {reason}") from None


def model_named(path: Path, format: SaeFormat) -> str | None:
    """The language model that an autoencoder's config names; only sae-lens can name one."""
    if format != "sae-lens":
        return None
    config = _config(path)
    name = config.inner("metadata").get("model_name") or config.get("model_name")
    return str(name) if name else None


def is_same_model(one: str, other: str) -> bool:
    """Whether two names denote the same model, ignoring its owner and suffixes that TransformerLens adds or drops."""
    short = [re.sub(r"-(small|hf|v0\.1)$", "", name.rpartition("/")[2].lower()) for name in (one, other)]
    return short[0] == short[1]


def save_for(sae: SparseAutoencoder, folder: Path, format: SaeFormat) -> None:
    """Write an autoencoder for another library, which then computes the same reconstruction.

    Args:
        folder: created if it does not exist.

    Raises:
        UserError: one line, when the format cannot represent the autoencoder.
    """
    writers = {"sae-lens": _to_sae_lens, "sparsify": _to_sparsify}
    if format not in writers:
        raise UserError(f"--format: {format!r}: can only be read; allowed: {', '.join(writers)}")
    config, weights, file = writers[format](sae.folded())
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / file)
    as_any_new(folder / file)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _openai(path: Path) -> _Foreign:
    check_regular(path)
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
        if unpacked > path.stat().st_size:
            raise UserError(f"{path}: says that it unpacks to {unpacked} bytes; torch packs nothing")
    try:
        # Mapped, tensors are read when they are used; files from before torch 1.6, which are no archives, cannot be.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: not a file of tensors, or it holds more, which is not read: it could run") from None
    except OSError:
        raise
    except Exception as error:  # torch.load raises any kind for a file that is no pickle
        reason = (str(error) or "unreadable").splitlines()[0]
        raise UserError(f"{path}: not a file of tensors: {reason}") from None
    fields = _Fields(path, content)
    fields.require("activation", "TopK")
    activation = _Fields(path, fields["activation_state_dict"])
    activation.require("postact_fn", "ReLU")
    latents, d_model = fields.length("latent_bias"), fields.length("pre_bias")
    # The file does not state it, but OpenAI's autoencoders with the activation TopK normalise their inputs.
    config = {"d_model": d_model, "latents": latents, "k": activation.count("k"), "normalize": "token"}
    site = None
    if published := re.search(r"(resid_\w+)_v5_\w+/(?:autoencoders/)?([0-9]+)\.pt$", path.as_posix()):
        if published[1] not in _OPENAI_LOCATIONS:
            raise UserError(f"{path}: {published[1]!r}: allowed: {', '.join(_OPENAI_LOCATIONS)}")
        site = Site(_OPENAI_LOCATIONS[published[1]], int(published[2]) + 1)

    def weights() -> dict[str, Tensor]:
        return {
            "encoder": fields.tensor("encoder.weight", latents, d_model),
            "decoder": fields.tensor("decoder.weight", d_model, latents).T,
            "latent_bias": fields.tensor("latent_bias", latents),
            "pre_bias": fields.tensor("pre_bias", d_model),
        }

    return _Foreign(config, weights, site)


def _sae_lens(folder: Path) -> _Foreign:
    config = _config(folder)
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":  # SAELens before 6.0
        architecture = "topk"
        shape = {"architecture": "topk", "k": _Fields(config.source, config["activation_fn_kwargs"]).count("k")}
    else:
        architecture = config.require("architecture", *_SAE_LENS_ARCHITECTURES)
        config.require("activation_fn_str", "relu")
        shape = {"architecture": _SAE_LENS_ARCHITECTURES[architecture]}
        if architecture in ("topk", "abstopk"):
            shape["k"] = config.count("k")
    config.require("reshape_activations", "none")
    normalize = config.require("normalize_activations", "none", "layer_norm", False, None)
    latents, d_model = config.count("d_sae"), config.count("d_in")
    shape |= {"d_model": d_model, "latents": latents, "normalize": "token" if normalize == "layer_norm" else "none"}

    def weights() -> dict[str, Tensor]:
        tensors = _weights(folder / SAE_LENS_WEIGHTS)
        encoder = tensors.tensor("W_enc", d_model, latents).T
        decoder = tensors.tensor("W_dec", latents, d_model)
        latent_bias, pre_bias = tensors.tensor("b_enc", latents), tensors.tensor("b_dec", d_model)
        if config.require("apply_b_dec_to_input", True, False) is False:
            latent_bias = latent_bias + encoder @ pre_bias
        if _centred(config):
            # Its inputs had their mean over the dimensions subtracted; folding that into the encoder is equivalent.
            mean = encoder.mean(1, keepdim=True)
            encoder, latent_bias = encoder - mean, latent_bias - mean.squeeze(1) * pre_bias.sum()
        if config.require("finetuning_scaling_factor", False, True):
            decoder = decoder * tensors.tensor("scaling_factor", latents)[:, None]
        if config.require("rescale_acts_by_decoder_norm", False, True):
            norm = decoder.norm(dim=1)
            encoder, latent_bias, decoder = encoder * norm[:, None], latent_bias * norm, F.normalize(decoder, dim=1)
        found = {"encoder": encoder, "decoder": decoder, "latent_bias": latent_bias, "pre_bias": pre_bias}
        if architecture == "jumprelu":
            # SAELens applies a ReLU besides the threshold, so a negative threshold acts as 0.
            found["threshold"] = tensors.tensor("threshold", latents).clamp(min=0)
        return found

    return _Foreign(shape, weights, _sae_lens_site(config))


def _centred(config: _Fields) -> bool:
    """Whether it was trained on TransformerLens's centred residual stream, which Hugging Face's models do not have."""
    places = config.inner("metadata"), config  # since 6.0, and before
    return any(each.inner("model_from_pretrained_kwargs").get("center_writing_weights") for each in places)


def _sae_lens_site(config: _Fields) -> Site | None:
    """The site, from the name of TransformerLens's hook, which is in `metadata` since 6.0."""
    hook = config.inner("metadata").get("hook_name") or config.get("hook_name") or config.get("hook_point")
    if not hook:
        return None
    named = re.fullmatch(r"blocks\.([0-9]+)\.hook_(\w+)", str(hook))
    if named and named[2] == "resid_pre" and named[1] != "0":
        return Site("resid_post", int(named[1]))
    try:
        return Site.parse(f"{named[2]}_{int(named[1]) + 1}" if named else str(hook))
    except ValueError:
        allowed = ", ".join(f"blocks.N.hook_{each}" for each in get_args(Location))
        raise UserError(f"{config.source}: hook_name: {hook!r}: cannot be represented; allowed: {allowed}") from None


def _sparsify(folder: Path) -> _Foreign:
    config = _config(folder)
    config.require("activation", "topk")
    for name in ("transcode", "skip_connection", "signed"):
        config.require(name, False)
    d_model = config.count("d_in")
    latents = config.count("num_latents") if config.get("num_latents") else d_model * config.count("expansion_factor")
    site = None
    if hook := re.fullmatch(r"(?:.*\.)?(?:layers|h)\.([0-9]+)(\.[\w.]+)?", folder.name):  # the hook point
        if hook[2] not in _SPARSIFY_LOCATIONS:
            raise UserError(
                f"{folder}: {hook[2]!r}: allowed: {', '.join(filter(None, _SPARSIFY_LOCATIONS))}, or nothing"
            )
        site = Site(_SPARSIFY_LOCATIONS[hook[2]], int(hook[1]) + 1)

    def weights() -> dict[str, Tensor]:
        tensors = _weights(folder / SPARSIFY_WEIGHTS)
        return {
            "encoder": tensors.tensor("encoder.weight", latents, d_model),
            "decoder": tensors.tensor("W_dec", latents, d_model),
            "latent_bias": tensors.tensor("encoder.bias", latents),
            "pre_bias": tensors.tensor("b_dec", d_model),
        }

    shape = {"d_model": d_model, "latents": latents, "k": config.count("k"), "normalize": "none"}
    return _Foreign(shape, weights, site)


_READERS: dict[SaeFormat, Callable[[Path], _Foreign]] = {
    "openai": _openai,
    "sae-lens": _sae_lens,
    "sparsify": _sparsify,
}


def _config(folder: Path) -> _Fields:
    return _Fields(folder / CONFIG, read_json(folder / CONFIG))


def _weights(path: Path) -> _Fields:
    check_regular(path)
    try:
        return _Fields(path, load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path}: not safetensors: {error}") from None


class _Written(NamedTuple):
    """The files of an exported autoencoder."""

    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    file: str


def _to_sae_lens(sae: SparseAutoencoder) -> _Written:
    theirs = {each: name for name, each in _SAE_LENS_ARCHITECTURES.items()}
    config = {
        "architecture": theirs.get(sae.config.architecture, "jumprelu"),
        "d_in": sae.config.d_model,
        "d_sae": sae.config.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if sae.config.normalize == "token" else "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "hook_name": f"blocks.{sae.config.layer - 1}.hook_{sae.config.location}",
        },
    }
    weights: dict[str, Tensor] = {
        "W_enc": sae.encoder.T,
        "W_dec": sae.decoder,
        "b_enc": sae.latent_bias,
        "b_dec": sae.pre_bias,
    }
    if sae.config.architecture in ("topk", "abstopk"):
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    elif sae.config.architecture != "relu":
        weights["threshold"] = sae.threshold
    return _Written(config, weights, SAE_LENS_WEIGHTS)


def _to_sparsify(sae: SparseAutoencoder) -> _Written:
    if sae.config.architecture != "topk":
        raise UserError(f"sparsify has no {sae.config.architecture}, only topk: export to sae-lens")
    if sae.config.normalize == "token":
        raise UserError(
            "sparsify has no normalisation of its own, and dividing each token by its standard deviation cannot be "
            "folded into weights: train with sae.normalize: none, or export to sae-lens"
        )
    config = {
        "activation": "topk",
        "expansion_factor": sae.config.latents // sae.config.d_model,
        "normalize_decoder": True,
        "num_latents": sae.config.latents,
        "k": sae.config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.config.d_model,
    }
    weights = {
        "encoder.weight": sae.encoder,
        "encoder.bias": sae.latent_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.pre_bias,
    }
    return _Written(config, weights, SPARSIFY_WEIGHTS)

"""Checks before any work: parameters that do not fit the files and packages of this machine are refused.

Nothing is downloaded: of a hub model, only the cache is read. Packages that the parameters do not use are not imported,
so the shipped parameters take milliseconds. `cocomix.params` checks ranges of values.
"""

import importlib.util
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.check.external import corpus_inputs
from cocomix.check.tokens import check_validation_windows
from cocomix.params import LAYERS, Params, Site
from cocomix.plumbing.errors import UserError, install
from cocomix.plumbing.runtime import runtime
from cocomix.shapes.pretrained import check_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ARTIFACTS = "artifacts"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_.-]{1,96})?")
WEIGHTS = {"sae-lens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}
"""For each format that is a folder: its weight file, with the tensor W_dec of shape [latents, d_model]."""
BYTES_OF_A_TOKEN = 0.5
"""Lower bound: a token of a byte-level vocabulary has at least one byte, except the EOS that ends each document."""


def preflight(params: Params) -> None:
    """Check all parameters, and the runtime settings, against this machine.

    Raises:
        UserError: the first problem: the key, the value, and what is allowed.
    """
    if runtime().tensorboard is not None:
        _need("tensorboard", "COCOMIX_TENSORBOARD", "tensorboard")
    _check_corpus(params)
    _check_tokenizer(params)
    _check_base(params)
    _check_sae(params)
    _check_labeller(params)
    init_config(params)
    _check_evaluate(params)
    _check_steer(params)


def check_place(artifacts: Path) -> None:
    """Check that the artifacts folder and the folders in it are no links, and that it is no file.

    A stage replaces such a folder by renaming, and DVC accepts none behind a link; both would fail at the end.

    Raises:
        UserError: when one is.
    """
    inside = (each for depth in ("*", "*/*") for each in artifacts.glob(depth) if each.is_symlink() and each.is_dir())
    wrong = artifacts.is_symlink() or (artifacts.exists() and not artifacts.is_dir())
    if found := artifacts if wrong else next(inside, None):
        raise UserError(
            f"{found}: must be a folder, not a link or a file; to have {artifacts} on another disk, mount that here, "
            "or put the whole project there"
        )


def init_config(params: Params) -> dict[str, Any] | None:
    """The configuration of the model of `pretrain.init`; None: there is none, or it is not on this machine.

    Raises:
        UserError: when it cannot be read, or the methods cannot go on from it.
    """
    init = params.pretrain.init
    if init.source == "scratch":
        return None
    config = _config("pretrain.init.path", str(init.path), init.revision)
    if config is None:
        return None
    check_pretrained(config.to_dict(), params.pretrain, params.tokenize.context)
    return config.to_dict()


def check_base_model(model: "PreTrainedModel", params: Params) -> None:
    """Check that a base model has the layers and sites that parameters name; weights may be on the meta device.

    The stage `base` checks what only a forward pass shows (`cocomix.base.families`).

    Raises:
        UserError: when one is missing.
    """
    from cocomix.base.blocks import check_layer, part_of

    for site in map(Site.parse, params.activations.sites):
        check_layer(model, site.layer)
        part_of(model, site)


def _check_corpus(params: Params) -> None:
    section = params.corpus
    if section.source == "files":
        from cocomix.corpus.files import find_files

        _check_not_ours("corpus.files.paths", *find_files(section.files.paths))
    if section.source == "hub":
        _need("datasets", "corpus.source: hub", "pipeline")
        name = str(section.hub.dataset)
        if os.path.exists(name) or not HUB_ID.fullmatch(name):
            raise UserError(
                f"corpus.hub.dataset: {name!r}: no id of the hub; files of this machine need corpus.source: files"
            )
    if section.near_duplicates is not None:
        _need("rensa", "corpus.near_duplicates", "text")


def _check_tokenizer(params: Params) -> None:
    section = params.tokenize
    if section.source == "pretrained" and _is_folder("tokenize.pretrained", str(section.pretrained), section.revision):
        from cocomix.pretrained import load_tokenizer

        load_tokenizer("tokenize.pretrained", str(section.pretrained), section.revision)
    base = params.base
    if base.tokenizer == "own" and _is_folder("base.pretrained", str(base.pretrained), base.revision):
        from cocomix.tokens.tokenizer import load_pretrained

        load_pretrained(str(base.pretrained), base.revision, "base.pretrained")


def _check_base(params: Params) -> None:
    if params.base.source == "train":
        return
    name = str(params.base.pretrained)
    config = _config("base.pretrained", name, params.base.revision)
    if config is None:
        return
    from cocomix.base.loading import longest_context

    text, context = config.get_text_config(), params.base.context or params.tokenize.context
    length = longest_context(text) or context
    if length < context:
        key = "tokenize.context" if params.base.context is None else "base.context"
        raise UserError(f"base.pretrained: {name!r} has a context of {length}; {key} is {context}")
    blocks = getattr(text, "num_hidden_layers", None) or 0
    if blocks > LAYERS:
        raise UserError(f"base.pretrained: {name!r} has {blocks} blocks; allowed: at most {LAYERS}")
    check_base_model(_without_weights(config, name), params)


def _check_sae(params: Params) -> None:
    section = params.sae
    if section.source == "train":
        return
    path, format = Path(str(section.published.path)), section.published.format
    key = f"sae.published.path: {path}"
    _check_not_ours("sae.published.path", path)
    if not os.path.exists(path):
        raise UserError(f"{key}: no such file or folder")
    weights = WEIGHTS.get(format)
    if not weights and not path.is_file():
        raise UserError(f"{key}: sae.published.format: {format} is a file, and this is none")
    for name in ("cfg.json", weights) if weights else ():
        if not (path / name).is_file():
            raise UserError(f"{key}: sae.published.format: {format} is a folder with {name}, which is not there")
    from cocomix.sae.formats import check_model, check_published, published_config

    site = Site.parse(section.site or params.activations.sites[0])
    config = published_config(path, format, site, section.k)
    shape = _shape_of(path / weights, "W_dec") if weights else None
    if shape not in (None, [config.latents, config.d_model]):
        raise UserError(f"{key}: W_dec has the shape {shape}; cfg.json says {[config.latents, config.d_model]}")
    check_published(config, section, site, _d_model_of_base(params))
    check_model(section, params.base.pretrained if params.base.source == "pretrained" else None)


def _d_model_of_base(params: Params) -> int | None:
    """The dimensions of the base model; None: it is not on this machine, or its configuration does not say."""
    if params.base.source == "train":
        return params.base.model.d_model
    config = _config("base.pretrained", str(params.base.pretrained), params.base.revision)
    return getattr(config.get_text_config(), "hidden_size", None) if config else None


def _check_labeller(params: Params) -> None:
    section = params.explain
    if section.labeller == "model":
        key, name, revision = "explain.model.name", str(section.model.name), section.model.revision
        if _config(key, name, revision) and os.path.isdir(name):
            from cocomix.pretrained import load_tokenizer

            load_tokenizer(key, name, revision)


def _check_evaluate(params: Params) -> None:
    section = params.evaluate
    for name, corpus in section.corpora.items():
        from cocomix.evaluation.corpus_files import check_documents, files_of

        _check_not_ours(f"evaluate.corpora.{name}.paths", *files_of(name, corpus))
        check_documents(name, corpus)
    if section.tasks:
        folder = None if section.tasks_dir is None else Path(section.tasks_dir)
        if folder and not os.path.isdir(folder):
            raise UserError(f"evaluate.tasks_dir: {section.tasks_dir!r}: no such folder")
        if folder:
            _check_not_ours("evaluate.tasks_dir", folder)
        from cocomix.evaluation.downstream_tasks import check_task

        for task in section.tasks:
            check_task(task, folder)


def _check_steer(params: Params) -> None:
    _, most = params.corpus.limit
    if math.isfinite(most):
        check_validation_windows(params, int(most / BYTES_OF_A_TOKEN / params.tokenize.context))
    windows = _validation_windows_here(params)
    if windows is None or windows >= params.steer.windows:
        return
    if _manifest("corpus")["inputs"] == corpus_inputs(params):
        check_validation_windows(params, windows)


def _validation_windows_here(params: Params) -> int | None:
    """Windows of the validation split in artifacts/, if these parameters made it."""
    corpus, tokens = _manifest("corpus"), _manifest("tokens")
    try:
        if corpus["params"] == params.corpus.used and tokens["params"] == params.tokenize.model_dump(mode="json"):
            return int(tokens["files"]["validation.npy"]["rows"])
    except (KeyError, TypeError):
        pass
    return None


def _manifest(artifact: str) -> dict[str, Any]:
    try:
        return dict(json.loads(Path(ARTIFACTS, artifact, "manifest.json").read_bytes()))
    except (OSError, ValueError, TypeError):  # the stage that reads it reports the problem
        return {}


def _is_folder(key: str, name: str, revision: str | None) -> bool:
    """Whether the name is a folder; if not, it is a hub id.

    Raises:
        UserError: when it can be neither, or it is a hub id without a revision.
    """
    _check_not_ours(key, name)
    if os.path.isdir(name):
        return True
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{key}: {name!r}: no such folder, and no id of the hub")
    if Path(name).exists():
        raise UserError(f"{key}: {name!r}: a file; it must be a hub id or a folder")
    if not revision:
        raise UserError(
            f"{key}: {name!r}: no such folder; a hub id may change under its name: "
            f"set {key.rpartition('.')[0]}.revision, at best to a commit"
        )
    return False


def _config(key: str, name: str, revision: str | None) -> "PreTrainedConfig | None":
    """The configuration of a model in a folder or in the hub's cache; None: not on this machine.

    Raises:
        UserError: when it is in a folder without usable weights.
    """
    is_folder = _is_folder(key, name, revision)
    from cocomix.pretrained import check_files, load_config

    try:
        config = load_config(key, name, revision, local=True)
    except UserError:
        if is_folder:
            raise
        return None
    if is_folder:
        check_files(key, name, revision)
    return config


def _without_weights(config: "PreTrainedConfig", name: str) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    from cocomix.pretrained import unreadable

    # The base model in a model of text and images is its text part.
    is_text = type(config) in AutoModelForCausalLM._model_mapping
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config if is_text else config.get_text_config())
    except Exception as error:
        raise unreadable("base.pretrained", name, "model", error) from None


def _shape_of(file: Path, tensor: str) -> list[int]:
    """Shape of a tensor in a safetensors file.

    Raises:
        UserError: when the file is damaged, or has no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            return list(tensors.get_slice(tensor).get_shape())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not safetensors with {tensor}: {error}") from None


def _check_not_ours(key: str, *paths: Path | str) -> None:
    """Check that a parameter names nothing in artifacts/: DVC would not know that one stage reads what another writes.

    Raises:
        UserError: when it does.
    """
    ours = os.path.join(os.path.abspath(ARTIFACTS), "")
    if found := next((each for each in paths if os.path.join(os.path.abspath(each), "").startswith(ours)), None):
        raise UserError(f"{key}: {str(found)!r}: in {ARTIFACTS}, which the stages write; copy it to another folder")


def _need(package: str, what: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs {package}, which is not installed: {install(extra)}")

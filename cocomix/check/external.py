"""Digests of what parameters name outside the project (files, folders, installed packages), by parameter.

A revision identifies a model of the hub, but a folder's content may change under its name. The stage `check` writes the
digests into artifacts/external/external.json each time DVC runs. A stage that reads such a file depends on its key
there, as on a parameter, and has the digest among the inputs of its work.
"""

import json
from collections.abc import Callable, Mapping
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cocomix.params import Params
from cocomix.plumbing.artifact import digest_of_json
from cocomix.plumbing.digests import digest_of_path

FILE = Path("artifacts/external/external.json")


def _corpus_source(params: Params) -> str | None:
    if params.corpus.source != "installed-docs":
        return None
    from cocomix.corpus.installed import versions

    return versions()


def _corpus_files(params: Params) -> str | None:
    if params.corpus.source != "files":
        return None
    from cocomix.corpus.files import files_digest

    return files_digest(params.corpus.files.paths)


def _tokenizer(params: Params) -> str | None:
    section = params.tokenize
    return _named(section.pretrained) if section.source == "pretrained" else None


def _base(params: Params) -> str | None:
    section = params.base
    return _named(section.pretrained) if section.source == "pretrained" else None


def _autoencoder(params: Params) -> str | None:
    section = params.sae
    return _named(section.published.path) if section.source == "published" else None


def _label_model(params: Params) -> str | None:
    section = params.explain
    return _named(section.model.name) if section.labeller == "model" else None


def _init(params: Params) -> str | None:
    section = params.pretrain.init
    return _named(section.path) if section.source == "pretrained" else None


def _corpora(params: Params) -> str | None:
    corpora = params.evaluate.corpora
    if not corpora:
        return None
    from cocomix.evaluation.corpus_files import digest_of_corpus_files

    return digest_of_json({name: digest_of_corpus_files(name, each) for name, each in corpora.items()})


def _tasks(params: Params) -> str | None:
    section = params.evaluate
    if not section.tasks:
        return None
    from cocomix.evaluation.downstream_tasks import data_folder

    folder = None if section.tasks_dir is None else Path(section.tasks_dir)
    examples = {task: folder and digest_of_path(folder / data_folder(task)) for task in section.tasks}
    return digest_of_json([_lm_eval(), examples])


def _lm_eval() -> str | None:
    """The version of lm-eval, which defines the tasks and fixes the revisions of their data on the hub."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:  # preflight refuses that
        return None


def _benchmarks(params: Params) -> str | None:
    section = params.evaluate
    if params.corpus.decontaminate is None:
        return None
    corpora = {name: each.model_dump() for name, each in section.corpora.items()}
    return digest_of_json([_tasks(params), corpora, _corpora(params)])


_DIGESTS: Mapping[str, Callable[[Params], str | None]] = {
    "corpus.source": _corpus_source,
    "corpus.files.paths": _corpus_files,
    "corpus.decontaminate": _benchmarks,
    "tokenize.pretrained": _tokenizer,
    "base.pretrained": _base,
    "sae.published.path": _autoencoder,
    "explain.model.name": _label_model,
    "pretrain.init.path": _init,
    "evaluate.corpora": _corpora,
    "evaluate.tasks": _tasks,
}
KEYS = tuple(_DIGESTS)
"""The parameters that can name something outside the project."""


def digest_of(key: str, params: Params) -> str | None:
    """Digest of what the parameter `key` names; None: nothing on this machine, or the parameter is not used.

    Raises:
        UserError: when it names something that does not exist or cannot be read.
    """
    return _DIGESTS[key](params)


def outside(key: str, params: Params) -> dict[str, str]:
    """`digest_of` as an entry of a stage's inputs; empty where there is none."""
    found = digest_of(key, params)
    return {} if found is None else {key: found}


def corpus_inputs(params: Params) -> dict[str, str]:
    """The inputs of the corpus: its source, and the texts whose pieces are dropped from it."""
    from cocomix.corpus.build import fingerprint

    dropped = outside("corpus.decontaminate", params) if params.corpus.decontaminate == "drop" else {}
    return {"source": fingerprint(params.corpus), **dropped}


def digests(params: Params) -> dict[str, str | None]:
    """`digest_of` for all keys."""
    return {key: digest_of(key, params) for key in KEYS}


def noted(folder: Path = Path()) -> dict[str, str | None] | None:
    """The digests in a project folder's external.json by parameter; None: the file is missing or damaged."""
    try:
        content = json.loads((folder / FILE).read_bytes())
        return {key: reduce(lambda inner, name: inner.get(name, {}), key.split("."), content) or None for key in KEYS}
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def to_json(digests: Mapping[str, str | None]) -> bytes:
    """The content of external.json, with the sections of params.yaml."""
    content: dict[str, Any] = {}
    for key, digest in digests.items():
        *sections, last = key.split(".")
        inner = content
        for each in sections:
            inner = inner.setdefault(each, {})
        inner[last] = digest
    return (json.dumps(content, indent=2) + "\n").encode()


def _named(name: str | None) -> str | None:
    """Digest of a file or folder; None: no path has that name, as for a hub id; what must be there is in preflight."""
    return digest_of_path(Path(str(name)))

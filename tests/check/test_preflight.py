"""What can be known at the start is refused at the start, in one line."""

import json
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, LlamaConfig, OPTConfig, PreTrainedTokenizerFast, Qwen3Config

from cocomix.check.preflight import preflight
from cocomix.params import Params
from cocomix.plumbing.checked import merge, parse
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.tokenizer import END_OF_DOCUMENT, train_tokenizer
from tests.shipped import SHIPPED, shipped_values

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"

RELU = {"architecture": "relu", "normalize": "none", "sparsity_weight": 0.1}


def params(changes: dict[str, Any]) -> Params:
    content = shipped_values()
    merge(content, changes)
    return parse(Params, content, "params.yaml")


def base(name: str, revision: str | None = None, **more: Any) -> dict[str, Any]:
    return {"base": {"source": "pretrained", "pretrained": name, "revision": revision}, **more}


def init(path: str, revision: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "pretrain": {"match": "width", "init": {"source": "pretrained", "path": path, "revision": revision}, **more}
    }


def own(name: str, context: int | None = None) -> dict[str, Any]:
    return {
        "base": {**base(name)["base"], "tokenizer": "own", "context": context},
        "distribution": {"draws": None},
        "pretrain": {"methods": ["ntp", "cocomix"]},
    }


def published(path: str, format: str, **more: Any) -> dict[str, Any]:
    return {"sae": {"source": "published", "published": {"path": path, "format": format}, **more}}


def openai(path: str, d_model: int = 128, *, is_archive: bool = True) -> None:
    """A file of OpenAI's with 1024 latents, of which 32 are active; the encoder's and decoder's numbers are missing."""
    content = {"latent_bias": torch.zeros(1024), "pre_bias": torch.zeros(d_model)}
    activation = {"activation": "TopK", "activation_state_dict": {"k": 32, "postact_fn": "ReLU"}}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | activation, path, _use_new_zipfile_serialization=is_archive)


def make_files() -> None:
    """What parameters can name, in the working directory."""
    sparse = {"activation": "topk", "num_latents": 1024, "k": 32}
    configs = {
        "lens": {"architecture": "standard", "d_in": 128, "d_sae": 1024},
        "torn-lens": {"architecture": "standard", "d_in": 128, "d_sae": 512},
        "sparse": sparse | {"d_in": 96},
        "sparse-32": sparse | {"d_in": 32},
        "no-weights": {},
        "named-lens": {"architecture": "standard", "d_in": 128, "d_sae": 1024, "model_name": "pythia-70m"},
    }
    for name, config in configs.items():
        Path(name).mkdir()
        Path(name, "cfg.json").write_text(json.dumps(config))
    for name in ("lens", "torn-lens", "named-lens"):
        save_file({"W_dec": np.zeros((1024, 128), np.float32)}, f"{name}/sae_weights.safetensors")
    for name in ("sparse", "sparse-32"):
        save_file({"W_dec": np.zeros((1024, configs[name]["d_in"]), np.float32)}, f"{name}/sae.safetensors")
    openai("openai.pt")
    openai("openai-32.pt", d_model=32)
    openai("openai-old.pt", is_archive=False)
    openai("resid_post_mlp_v5_32k/autoencoders/5.pt")
    Path("file.txt").write_text("text")
    Path("file.bin").write_text("no text")
    GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, vocab_size=64).save_pretrained("short")
    GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=128, vocab_size=64).save_pretrained("small")
    OPTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=64).save_pretrained("opt")
    llama = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64}
    LlamaConfig(**llama, tie_word_embeddings=True).save_pretrained("llama")
    Qwen3Config(**llama, tie_word_embeddings=True, use_sliding_window=True).save_pretrained("sliding")
    GPT2Config(n_embd=32, n_layer=3, n_head=2, tie_word_embeddings=False).save_pretrained("untied")
    GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=128, vocab_size=300).save_pretrained("with-tokenizer")
    tokenizer = train_tokenizer(["text"], 300)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_DOCUMENT).save_pretrained("with-tokenizer")
    for config in Path().glob("*/config.json"):
        save_file({"weight": np.zeros(1, np.float32)}, config.with_name("model.safetensors"))
    for name, weights in {"no-model": None, "torn-model": b"torn", "pickled-model": None}.items():
        GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=128, vocab_size=64).save_pretrained(name)
        if weights:
            Path(name, "model.safetensors").write_bytes(weights)
    Path("pickled-model/pytorch_model.bin").write_bytes(b"")
    for name, weights in {"torn-lens-weights": b"torn", "other-lens-weights": None}.items():
        Path(name).mkdir()
        Path(name, "cfg.json").write_text(json.dumps(configs["lens"]))
        save_file({"other": np.zeros(1, np.float32)}, f"{name}/sae_weights.safetensors")
        if weights:
            Path(name, "sae_weights.safetensors").write_bytes(weights)
    Path("bad.jsonl").write_text('{"body": "text"}\n')
    Path("latin.txt").write_bytes(b"\xe9t\xe9")
    Path("artifacts/models").mkdir(parents=True)
    Path("artifacts/summary.txt").write_text("text")
    for task, examples in {"arc_easy": b"{", "piqa": b"", "hellaswag": b"\xff"}.items():
        split = "test" if task == "arc_easy" else "validation"
        Path("tasks", task).mkdir(parents=True)
        Path("tasks", task, f"{split}.jsonl").write_bytes(examples)
    Path("torn").mkdir()
    Path("torn/config.json").write_text("{")
    Path("empty").mkdir()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with chdir(tmp_path_factory.mktemp("files")):
        make_files()
        return Path.cwd()


@pytest.fixture
def files(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what parameters can name, made the working directory. Read only."""
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corpus": {"source": "files", "files": {"paths": ["no/*.txt"]}}},
            "corpus.files.paths: 'no/*.txt' matches no",
        ),
        ({"corpus": {"source": "files", "files": {"paths": ["file.bin"]}}}, "file.bin: not a known kind of file"),
        (
            {"tokenize": {"source": "pretrained", "pretrained": "a/b/c"}},
            "tokenize.pretrained: 'a/b/c': no such folder, and no id of the hub",
        ),
        (
            {"tokenize": {"source": "pretrained", "pretrained": "file.txt"}},
            "tokenize.pretrained: 'file.txt': a file; it",
        ),
        (
            {"tokenize": {"source": "pretrained", "pretrained": "empty"}},
            "tokenize.pretrained: 'empty': no tokenizer can",
        ),
        (base("./nowhere"), "base.pretrained: './nowhere': no such folder, and no id of the hub"),
        (base("a b"), "base.pretrained: 'a b': no such folder, and no id of the hub"),
        (base("torn"), "base.pretrained: 'torn': torn/config.json: not JSON: "),
        (base("empty"), "base.pretrained: 'empty': config.json: no such file"),
        (base("short"), "base.pretrained: 'short' has a context of 64; tokenize.context is 128"),
        (own("small"), "base.pretrained: 'small': its tokenizer knows no text: tokenizer.json is missing"),
        (own("with-tokenizer", 256), "base.pretrained: 'with-tokenizer' has a context of 128; base.context is 256"),
        (
            base("small", activations={"sites": ["resid_post_3"]}),
            "layer 3: the base model has 3 blocks; allowed: 1 to 2",
        ),
        (base("no-model"), "base.pretrained: 'no-model': no model.safetensors or model.safetensors.index.json there"),
        (base("pickled-model"), "base.pretrained: 'pickled-model': no model.safetensors or model.safetensors.index.js"),
        (base("torn-model"), "base.pretrained: 'torn-model': no model can be loaded from this folder: SafetensorError"),
        (base("x" * 300, COMMIT), "base.pretrained: 'xxxx"),
        (base("artifacts/base"), "base.pretrained: 'artifacts/base': in artifacts, which the stages write; copy it to"),
        (init("./artifacts/models"), "pretrain.init.path: './artifacts/models': in artifacts, which the stages write"),
        (init("no-model"), "pretrain.init.path: 'no-model': no model.safetensors or model.safetensors.index.json ther"),
        (
            {"explain": {"labeller": "model", "model": {"name": "small"}}},
            "explain.model.name: 'small': its tokenizer knows no text: tokenizer.json is missing",
        ),
        (
            {"corpus": {"source": "files", "files": {"paths": ["**/*.txt"]}}},
            "corpus.files.paths: 'artifacts/summary.txt': in artifacts, which the stages write",
        ),
        (
            {"corpus": {"source": "hub", "hub": {"dataset": "small", "revision": "main"}}},
            "corpus.hub.dataset: 'small': no id of the hub; files of this machine need corpus.source: files",
        ),
        (
            {"corpus": {"source": "hub", "hub": {"dataset": "../data", "revision": "main"}}},
            "corpus.hub.dataset: '../data': no id of the hub",
        ),
        (published("x" * 300, "openai"), "sae.published.path: xxxx"),
        (published("torn-lens-weights", "sae-lens"), "torn-lens-weights/sae_weights.safetensors: not safetensors with"),
        (
            published("other-lens-weights", "sae-lens"),
            "other-lens-weights/sae_weights.safetensors: not safetensors w",
        ),
        (published("nowhere", "openai"), "sae.published.path: nowhere: no such file or folder"),
        (published("lens", "openai"), "sae.published.path: lens: sae.published.format: openai is a file, and this is"),
        (published("file.txt", "sae-lens"), "sae.published.path: file.txt: sae.published.format: sae-lens is a folder"),
        (published("no-weights", "sparsify"), "sae.published.path: no-weights: sae.published.format: sparsify is a"),
        (published("lens", "sae-lens"), "sae.architecture: 'topk': the autoencoder in lens has 'relu'"),
        (
            published("lens", "sae-lens", **(RELU | {"latents": 512})),
            "sae.latents: 512: the autoencoder in lens has 1024",
        ),
        (
            published("torn-lens", "sae-lens", **RELU),
            "sae.published.path: torn-lens: W_dec has the shape [1024, 128]; cfg.json says [512, 128]",
        ),
        (
            published("sparse", "sparsify", normalize="none"),
            "sae.published: sparse is of a base model of 96 dimensions; this one has 128",
        ),
        (
            published("sparse", "sparsify", normalize="none") | base("small"),
            "sae.published: sparse is of a base model of 96 dimensions; this one has 32",
        ),
        (published("sparse", "sparsify"), "sae.normalize: 'token': the autoencoder in sparse has 'none'"),
        (published("openai.pt", "openai", latents=512), "sae.latents: 512: the autoencoder in openai.pt has 1024"),
        (published("openai-old.pt", "openai", latents=512), "sae.latents: 512: the autoencoder in openai-old.pt has"),
        (published("openai.pt", "openai", k=8), "sae.k: 8: the autoencoder in openai.pt has 32"),
        (
            published("openai-32.pt", "openai"),
            "sae.published: openai-32.pt is of a base model of 32 dimensions; this one has 128",
        ),
        (
            published("openai.pt", "openai") | base("small"),
            "sae.published: openai.pt is of a base model of 128 dimensions; this one has 32",
        ),
        (
            published("resid_post_mlp_v5_32k/autoencoders/5.pt", "openai"),
            "sae.published: resid_post_mlp_v5_32k/autoencoders/5.pt is of resid_post_6; the activations are of",
        ),
        (
            published("named-lens", "sae-lens", **RELU) | base("gpt2", COMMIT),
            "sae.published: named-lens is of the model 'pythia-70m'; the base model is 'gpt2' (base.pretrained)",
        ),
        (published("file.txt", "openai"), "file.txt: not a file of tensors"),
        (
            {"explain": {"labeller": "model", "model": {"name": "../nowhere"}}},
            "explain.model.name: '../nowhere': no such folder, and no id of the hub",
        ),
        (
            {"explain": {"labeller": "model", "model": {"name": "torn"}}},
            "explain.model.name: 'torn': torn/config.json: not JSON: ",
        ),
        (init("./nowhere"), "pretrain.init.path: './nowhere': no such folder, and no id of the hub"),
        (
            init("gpt2"),
            "pretrain.init.path: 'gpt2': no such folder; a hub id may change under its name: set pretrain.init.r",
        ),
        (init("torn"), "pretrain.init.path: 'torn': torn/config.json: not JSON: "),
        (init("opt"), "pretrain.init.path: 'opt': opt; allowed: gpt2, llama, qwen3"),
        (init("sliding"), "pretrain.init.path: 'sliding': has use_sliding_window: True; allowed: False"),
        (
            init("llama", model={"dropout": 0.1}),
            "pretrain.init.path: 'llama': llama; pretrain.model.dropout (0.1) must be 0",
        ),
        (init("untied"), "pretrain.init.path: 'untied': has tie_word_embeddings: False; allowed: True"),
        (init("short"), "pretrain.init.path: 'short' has a context of 64; tokenize.context is 128"),
        (
            init("small", cocomix={"concept_layer": 3}),
            "pretrain.init.path: 'small' has 3 blocks; pretrain.cocomix.concept_layer (3) must be below that",
        ),
        (
            {"evaluate": {"corpora": {"more": {"paths": ["no*"]}}}},
            "evaluate.corpora.more.paths: 'no*' matches no file",
        ),
        (
            {"evaluate": {"corpora": {"more": {"paths": ["bad.jsonl"]}}}},
            "bad.jsonl:1: no field 'text' (evaluate.corpora.more.text_field); allowed: body",
        ),
        ({"evaluate": {"corpora": {"more": {"paths": ["file.txt", "latin.txt"]}}}}, "latin.txt:1: not UTF-8"),
        ({"evaluate": {"tasks": ["arc_easy"], "tasks_dir": "tasks"}}, "tasks/arc_easy/test.jsonl:1: not JSON"),
        ({"evaluate": {"tasks": ["piqa"], "tasks_dir": "tasks"}}, "tasks/piqa/validation.jsonl: holds no example"),
        ({"evaluate": {"tasks": ["hellaswag"], "tasks_dir": "tasks"}}, "tasks/hellaswag/validation.jsonl:1: not JSON"),
        (
            {"evaluate": {"tasks": ["arc_easy"], "tasks_dir": "nowhere"}},
            "evaluate.tasks_dir: 'nowhere': no such folder",
        ),
        ({"evaluate": {"tasks": ["arc_easy"], "tasks_dir": "empty"}}, "empty/arc_easy/test.jsonl: no such file"),
        ({"steer": {"windows": 200_000}}, "steer.windows (200000) must not exceed validation's 118750 windows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(files: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        preflight(params(changes))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"corpus": {"source": "files", "files": {"paths": ["*.txt"]}}},
        base("small", activations={"sites": ["resid_post_2"]}),
        own("with-tokenizer"),
        own("with-tokenizer", 64),
        base("nobody/never-cached", COMMIT),
        {"tokenize": {"source": "pretrained", "pretrained": "nobody/never-cached", "revision": COMMIT}},
        {"explain": {"labeller": "model", "model": {"name": "nobody/never-cached", "revision": COMMIT}}},
        {"base": {"source": "train", "pretrained": "nobody/never-cached"}},
        init("small"),
        init("llama"),
        init("nobody/never-cached", COMMIT),
        published("lens", "sae-lens", **RELU),
        published("named-lens", "sae-lens", **RELU),
        published("named-lens", "sae-lens", **RELU) | base("EleutherAI/pythia-70m", COMMIT),
        published("sparse-32", "sparsify", normalize="none") | base("small"),
        published("openai.pt", "openai"),
        published("openai-old.pt", "openai"),
        published("openai-32.pt", "openai") | base("small"),
        published("openai-32.pt", "openai") | base("nobody/never-cached", COMMIT),
        {"evaluate": {"corpora": {"more": {"paths": ["file.txt"]}}}},
    ],
    ids=str,
)
def test_what_fits_is_let_through(files: Path, changes: dict[str, Any]) -> None:
    preflight(params(changes))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("tokenize.pretrained", {"tokenize": {"source": "pretrained", "pretrained": "gpt2"}}),
        ("base.pretrained", base("gpt2")),
        ("base.pretrained", base("gpt2", "")),
        ("explain.model.name", {"explain": {"labeller": "model", "model": {"name": "gpt2"}}}),
    ],
)
def test_a_hub_id_without_a_revision_is_refused(files: Path, key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        preflight(params(changes))
    section = key.rpartition(".")[0]
    assert str(error.value) == (
        f"{key}: 'gpt2': no such folder; a hub id may change under its name: set {section}.revision, "
        "at best to a commit"
    )


def test_validation_windows_are_those_of_the_tokens_that_these_parameters_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = params({"steer": {"windows": 9}})
    manifests: dict[str, Any] = {
        "corpus": {"params": asked.corpus.used, "inputs": {"source": "now"}},
        "tokens": {"params": asked.tokenize.model_dump(mode="json"), "files": {"validation.npy": {"rows": 8}}},
    }
    for name, manifest in manifests.items():
        Path("artifacts", name).mkdir(parents=True)
        Path("artifacts", name, "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("cocomix.corpus.build.fingerprint", lambda _: "now")
    with pytest.raises(UserError, match=r"steer.windows \(9\) must not exceed validation's 8 windows"):
        preflight(asked)
    monkeypatch.setattr("cocomix.corpus.build.fingerprint", lambda _: "later")  # the text has changed since
    preflight(asked)


def test_a_runtime_setting_whose_package_is_missing_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    preflight(params({}))
    monkeypatch.setenv("COCOMIX_TENSORBOARD", "logs")
    runtime.cache_clear()
    with pytest.raises(UserError, match="COCOMIX_TENSORBOARD needs tensorboard, which is not installed: "):
        preflight(params({}))


def test_the_shipped_parameters_need_no_library_of_models() -> None:
    program = (
        "import sys; from pathlib import Path; from cocomix.params import load\n"
        f"from cocomix.check.preflight import preflight; preflight(load(Path({str(SHIPPED)!r})))\n"
        "print(sorted({'torch', 'transformers', 'lm_eval', 'pyarrow', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

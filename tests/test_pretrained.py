"""Hostile and damaged files of models and autoencoders: one line each, in bounded time and memory."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cocomix.params import SaeFormat, Site
from cocomix.plumbing import checkpoint
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.pretrained import load_config, load_model
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder, load_sae
from cocomix.sae.formats import load_published
from tests.base.tiny_families import tiny

D_MODEL, LATENTS = 4, 8
INDEX = "model.safetensors.index.json"


class Runs:
    """What a pickle of it does when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


@pytest.fixture
def model(folder: Path) -> Path:
    """A good model's folder."""
    tiny("gpt2").save_pretrained(folder / "model")
    return folder / "model"


def with_config(**fields: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def with_index(file: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        shutil.move(model / "model.safetensors", model.parent / "outside.safetensors")
        with (model / "weights.bin").open("wb") as target:
            pickle.dump(Runs(), target)
        (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, file)}))

    return change


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(text)


def with_pipe(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return change


def with_folder(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).mkdir()

    return change


def with_type(dtype: torch.dtype) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "model.safetensors"
        save_file({name: each.to(dtype) for name, each in load_file(path).items()}, path, {"format": "pt"})

    return change


def with_nan(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["transformer.wte.weight"][3] = torch.nan
    save_file(weights, path, {"format": "pt"})


MODELS = {
    "index of a pickle": (with_index("weights.bin"), "names 'weights.bin'; allowed: .safetensors files beside it"),
    "index of a file outside": (with_index("../outside.safetensors"), "names '../outside.safetensors'; allowed"),
    "index of what is missing": (with_index("no.safetensors"), "no.safetensors: missing"),
    "index of nothing": (
        lambda model: (with_index("x.safetensors")(model), (model / INDEX).write_text("{}")),
        "weight_map: must say which file",
    ),
    "index that is a list": (
        lambda model: (with_index("x.safetensors")(model), (model / INDEX).write_text("[]")),
        "weight_map: must say which file",
    ),
    "pickle alone": (
        lambda model: (with_index("x.safetensors")(model), (model / INDEX).unlink()),
        "other weights are not read",
    ),
    "million layers": (with_config(n_layer=10**6), "n_layer: 1000000: allowed: at most 10000"),
    "2^40 layers": (with_config(n_layer=2**40), "n_layer: 1099511627776: allowed"),
    "9,999 layers": (with_config(n_layer=9999), "config.json asks for"),
    "2^40 labels": (with_config(num_labels=2**40), "num_labels: 1099511627776: allowed"),
    "width of 2^40": (with_config(n_embd=2**40), "config.json asks for|overflow"),
    "width of 2^16": (with_config(n_embd=2**16), "config.json asks for"),
    "2^40 positions": (with_config(n_positions=2**40), "config.json asks for"),
    "nested layers": (with_config(text_config={"num_hidden_layers": 10**7}), "num_hidden_layers: 10000000: allowed"),
    "negative width": (with_config(n_embd=-4), "no model can be loaded"),
    "width of text": (with_config(n_embd="x"), "no model can be loaded"),
    "quantised": (with_config(quantization_config={"quant_method": "gptq"}), "quantization_config: not read"),
    "quantised within": (
        with_config(text_config={"quantization_config": {"quant_method": "gptq"}}),
        "quantization_config: not read",
    ),
    "attention of the hub": (
        with_config(attn_implementation="a/b"),
        "attn_implementation: 'a/b': allowed: eager, sdpa",
    ),
    "attention of a part": (
        with_config(text_config={"_attn_implementation": "a/b"}),
        "_attn_implementation: 'a/b': all",
    ),
    "adapter": (with_text("adapter_config.json", '{"base_model_name_or_path": ".."}'), "adapters are not read"),
    "weights elsewhere": (with_config(transformers_weights="weights.bin"), "transformers_weights: not read"),
    "float8": (with_type(torch.float8_e4m3fn), "is of type F8_E4M3; allowed: 16 or 32 bits"),
    "nan": (with_nan, "weights that are not finite"),
    "deep configuration": (with_text("config.json", "[" * 10**5), "is nested too deeply"),
    "list for a configuration": (with_text("config.json", "[]"), "holds no configuration"),
    "no json": (with_text("config.json", "{"), "not JSON"),
    "pipe for a configuration": (with_pipe("config.json"), "no file, but something else"),
    "pipe for weights": (with_pipe("model.safetensors"), "no file, but something else"),
    "pipe beside": (with_pipe("generation_config.json"), "no file, but something else"),
    "folder for weights": (with_folder("model.safetensors"), "other weights are not read|no file, but"),
    "folder for a configuration": (with_folder("config.json"), "config.json: no such file"),
    "short weights": (with_text("model.safetensors", "x" * 20), "no model can be loaded"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model_is_refused_in_one_line_and_nothing_of_it_runs(case: str, model: Path) -> None:
    change, reason = MODELS[case]
    change(model)
    with pytest.raises(UserError, match=reason):
        load_model("base.pretrained", str(model), None, torch.float32)
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("attention of the hub", "attn_implementation: 'a/b': allowed: eager, sdpa"),
        ("2^40 layers", "n_layer: 1099511627776: allowed"),
        ("pipe for a configuration", "config.json: no such file"),
        ("no json", "not JSON"),
    ],
)
def test_a_bad_configuration_is_refused_before_weights_are_looked_for(case: str, reason: str, model: Path) -> None:
    change, _ = MODELS[case]
    change(model)
    with pytest.raises(UserError, match=reason):
        load_config("base.pretrained", str(model), None, local=True)


def weights() -> dict[str, Tensor]:
    return {
        "encoder.weight": torch.ones(LATENTS, D_MODEL),
        "decoder.weight": torch.ones(D_MODEL, LATENTS),
        "latent_bias": torch.zeros(LATENTS),
        "pre_bias": torch.zeros(D_MODEL),
    }


def openai(path: Path, **changes: Any) -> Path:
    activation = {"k": changes.pop("k", 2), "postact_fn": "ReLU"}
    torch.save(weights() | {"activation": "TopK", "activation_state_dict": activation} | changes, path)
    return path


def sparsify(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = {"activation": "topk", "d_in": D_MODEL, "num_latents": LATENTS, "k": 2}
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    tensors = {"encoder.weight": torch.ones(LATENTS, D_MODEL), "encoder.bias": torch.zeros(LATENTS)}
    save_file(
        tensors | {"W_dec": torch.ones(LATENTS, D_MODEL), "b_dec": torch.zeros(D_MODEL)}, folder / "sae.safetensors"
    )
    return folder


def packed(path: Path) -> Path:
    """A file of the kind that torch writes, of whose parts one is 64 MB of zeros, packed."""
    openai(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(1 << 26))
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def changed(path: Path, name: str, text: str) -> Path:
    (path / name).write_text(text)
    return path


ONES = torch.ones(1)
AUTOENCODERS: dict[str, tuple[SaeFormat, Callable[[Path], Path], str]] = {
    "meta": ("openai", lambda path: openai(path, pre_bias=torch.zeros(D_MODEL, device="meta")), "on meta"),
    "sparse": ("openai", lambda path: openai(path, **{"encoder.weight": torch.eye(8, 4).to_sparse()}), "sparse_coo"),
    "float8": ("openai", lambda path: openai(path, pre_bias=torch.zeros(4).to(torch.float8_e4m3fn)), "float8_e4m3fn"),
    "quantised": (
        "openai",
        lambda path: openai(path, pre_bias=torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8)),
        "qint8|holds more",
    ),
    "whole numbers": ("openai", lambda path: openai(path, pre_bias=torch.zeros(4, dtype=torch.int64)), "int64"),
    "giant of one number": (
        "openai",
        lambda path: openai(path, latent_bias=ONES.expand(2**40), **{"encoder.weight": ONES.expand(2**40, D_MODEL)}),
        "latent_bias: is float32 strided on cpu, 1099511627776 numbers",
    ),
    "giant matrix": (
        "openai",
        lambda path: openai(path, **{"encoder.weight": ONES.expand(8, 4)}),
        "encoder.weight: is",
    ),
    "nan": ("openai", lambda path: openai(path, pre_bias=torch.full((4,), torch.nan)), "not finite"),
    "tensor for a word": ("openai", lambda path: openai(path, activation=torch.ones(3)), "activation: .* cannot"),
    "k above the latents": ("openai", lambda path: openai(path, k=2**40), "k: 1099511627776: more than its 8 latents"),
    "packed": ("openai", packed, "unpacks to"),
    "pickle": ("openai", lambda path: openai(path, more=Runs()), "holds more, which is not read"),
    "pipe": ("openai", pipe, "no file, but something else"),
    "folder": ("openai", sparsify, "no file, but something else"),
    "file for a folder": ("sparsify", openai, "cfg.json: no such file|Not a directory"),
    "deep cfg": ("sparsify", lambda path: changed(sparsify(path), "cfg.json", '{"a":' * 10**5), "nested too deeply"),
    "list for cfg": ("sparsify", lambda path: changed(sparsify(path), "cfg.json", "[]"), "fields with names"),
    "cfg of another size": ("sparsify", lambda path: sparsify(path, num_latents=2**40), "must be a tensor of shape"),
    "nested value": ("sparsify", lambda path: sparsify(path, k=[[[[[[[[1]]]]]]]]), "k: .*: must be a whole number"),
    "pipe for cfg": (
        "sparsify",
        lambda path: (sparsify(path), (path / "cfg.json").unlink(), pipe(path / "cfg.json"), path)[-1],
        "no file, but something else",
    ),
    "pipe for weights": (
        "sparsify",
        lambda path: (sparsify(path), (path / "sae.safetensors").unlink(), pipe(path / "sae.safetensors"), path)[-1],
        "no file, but something else",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", AUTOENCODERS)
def test_a_bad_autoencoder_is_refused_in_one_line_and_nothing_of_it_runs(case: str, folder: Path) -> None:
    format, make, reason = AUTOENCODERS[case]
    path = make(folder / "theirs")
    with pytest.raises(UserError, match=reason):
        load_published(path, format, Site("resid_post", 1), 2)
    assert not Path("was-run").exists()


def published(about: dict[str, Any], **files: str) -> Artifact:
    with Work("sae", Path("artifacts/sae"), {}, {}) as work:
        with work.write_folder() as target:
            SparseAutoencoder(SaeConfig(d_model=4, latents=8, k=2, normalize="none", layer=1)).save(target)
            for name, text in files.items():
                (target / name.replace("_", ".")).write_text(text)
        work.finish(about)
        work.publish()
    return Artifact(Path("artifacts/sae"))


def test_a_manifest_without_a_fact_is_an_error_that_names_the_file_and_the_fact(folder: Path) -> None:
    artifact = published({})
    for facts in (artifact.about, artifact.manifest.inputs):
        with pytest.raises(UserError, match=r"artifacts/sae/manifest.json: says nothing of 'layer'; remove"):
            facts["layer"]
    assert artifact.about.get("layer") is None


def test_an_autoencoder_whose_configuration_is_of_another_size_is_refused(folder: Path) -> None:
    config = SaeConfig(d_model=2**20, latents=2**30, k=2, normalize="none", layer=1).model_dump_json()
    with pytest.raises(UserError, match=r"no autoencoder can be read: .* config.json is of \[1073741824, 1048576\]"):
        load_sae(published({}, config_json=config))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_in_a_checkpoints_place_is_passed_over(make: Callable[[Path], None], folder: Path) -> None:
    checkpoint.save(folder, 1, {"x": torch.ones(1)})
    make(folder / f"step-{9:09d}-0123456789abcdef.pt")
    assert checkpoint.load(folder) == {"x": torch.ones(1)}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_in_a_manifests_place_is_damage(make: Callable[[Path], None], folder: Path) -> None:
    published({})
    Path("artifacts/sae/manifest.json").unlink()
    make(Path("artifacts/sae/manifest.json"))
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        Artifact(Path("artifacts/sae"))


GIANTS = """
import json, resource, sys
from pathlib import Path
import torch
from cocomix.plumbing.errors import UserError
from tests.test_pretrained import AUTOENCODERS, MODELS, Site, load_model, load_published, tiny
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number, case in enumerate(json.loads(sys.argv[1])):
    path = Path(str(number))
    try:
        if case in MODELS:
            tiny("gpt2").save_pretrained(path)
            MODELS[case][0](path)
            load_model("base.pretrained", str(path), None, torch.float32)
        else:
            load_published(AUTOENCODERS[case][1](path), AUTOENCODERS[case][0], Site("resid_post", 1), 2)
    except UserError as error:
        print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_what_says_that_it_is_giant_takes_little_memory(folder: Path) -> None:
    cases = [
        each for each in (*MODELS, *AUTOENCODERS) if any(word in each for word in ("2^", "9,999", "giant", "packed"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", GIANTS, json.dumps(cases)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    *refused, kilobytes = done.stdout.split()
    assert refused == ["refused"] * len(cases), done.stderr[-2000:]
    assert int(kilobytes) < 500_000

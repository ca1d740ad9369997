"""Files of other projects' layouts, written here field by field, and their formulas over the whole dictionary."""

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cocomix.params import Site
from cocomix.plumbing.errors import UserError
from cocomix.sae import formats
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.sae.formats import save_for

D_MODEL, LATENTS, K, ROWS = 8, 24, 5, 40
PEERS = Path(__file__).parents[2] / ".peers"


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ENCODER, DECODER = random(LATENTS, D_MODEL, seed=0), random(LATENTS, D_MODEL, seed=1)
LATENT_BIAS, PRE_BIAS = random(LATENTS, seed=2), random(D_MODEL, seed=3)
THRESHOLD = random(LATENTS, seed=5)
X = 3 + 2 * random(ROWS, D_MODEL, seed=4)


def top(before: Tensor) -> Tensor:
    kept = before.topk(K)
    return torch.zeros_like(before).scatter(1, kept.indices, kept.values.relu())


def per_token(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(1, keepdim=True)
    std = (x - mean).std(1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def ours(**changes: Any) -> SparseAutoencoder:
    shape = {"d_model": D_MODEL, "latents": LATENTS, "k": K, "normalize": "token", "layer": 2}
    sae = SparseAutoencoder(SaeConfig(**(shape | changes)))
    weights = {"encoder": ENCODER, "decoder": DECODER, "latent_bias": LATENT_BIAS, "pre_bias": PRE_BIAS}
    weights |= {"threshold": THRESHOLD.clamp(min=0), "mean": X.mean(0), "std": X.std(0)}
    sae.load_state_dict({name: weights[name] for name in sae.state_dict()})
    return sae.requires_grad_(False)


def load_published(path: Path, format: Any, layer: int) -> SparseAutoencoder:
    return formats.load_published(path, format, Site("resid_post", layer), k=3)


# OpenAI


def openai_file(path: Path, **changes: Any) -> Path:
    content = {
        "pre_bias": PRE_BIAS,
        "encoder.weight": ENCODER,
        "latent_bias": LATENT_BIAS,
        "decoder.weight": DECODER.T,
        "stats_last_nonzero": torch.zeros(LATENTS, dtype=torch.int64),
        "latents_activation_frequency": torch.zeros(LATENTS),
        "latents_mean_square": torch.zeros(LATENTS),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | changes, path)
    return path


def test_an_openai_file_gives_the_published_reconstruction(tmp_path: Path) -> None:
    sae = load_published(openai_file(tmp_path / "5.pt"), "openai", layer=3)
    x, mean, std = per_token(X)
    latents = top((x - PRE_BIAS) @ ENCODER.T + LATENT_BIAS)
    close(sae(X), (latents @ DECODER + PRE_BIAS) * std + mean)
    assert sae.config == SaeConfig(d_model=D_MODEL, latents=LATENTS, k=K, normalize="token", layer=3)


def test_the_published_path_of_an_openai_file_says_its_layer(tmp_path: Path) -> None:
    for name in ("gpt2-small/resid_post_mlp_v5_32k/autoencoders/5.pt", "published/resid_post_mlp_v5_32k/5.pt"):
        assert load_published(openai_file(tmp_path / name), "openai", layer=1).config.layer == 6


def test_an_openai_file_of_another_location(tmp_path: Path) -> None:
    path = openai_file(tmp_path / "resid_delta_attn_v5_32k/autoencoders/5.pt")
    config = load_published(path, "openai", layer=1).config
    assert (config.location, config.layer) == ("attn_out", 6)
    with pytest.raises(UserError, match="resid_other"):
        load_published(openai_file(tmp_path / "resid_other_v5_32k/autoencoders/5.pt"), "openai", layer=6)


def test_an_openai_file_is_not_executed(tmp_path: Path) -> None:
    path = openai_file(tmp_path / "5.pt", latent_bias=Trap(tmp_path / "sprung"))
    with pytest.raises(UserError, match=r"5\.pt"):
        load_published(path, "openai", layer=6)
    assert not (tmp_path / "sprung").exists()


def test_an_openai_file_that_would_grow_by_unpacking_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "5.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    with pytest.raises(UserError, match=r"5\.pt: says that it unpacks to 1048576 bytes; torch packs nothing$"):
        load_published(path, "openai", layer=6)


def test_a_damaged_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    path = openai_file(tmp_path / "5.pt")
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03", 1))
    with pytest.raises(UserError, match=r"^[^\n]*5\.pt: cannot be read as openai: [^\n]*$"):
        load_published(path, "openai", layer=6)


def test_a_file_of_no_tensors_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "5.pt").write_bytes(b"no tensors\n")
    with pytest.raises(UserError, match=r"^[^\n]*5\.pt: not a file of tensors[^\n]*$"):
        load_published(tmp_path / "5.pt", "openai", layer=6)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation": "ReLU"}, "activation: 'ReLU'"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "postact_fn: 'Identity'"),
        ({"activation_state_dict": {"postact_fn": "ReLU"}}, "k: missing"),
        ({"decoder.weight": DECODER}, r"decoder.weight: must be a tensor of shape \[8, 24\], not \[24, 8\]"),
        ({"decoder.weight": None}, "decoder.weight: missing"),
    ],
)
def test_what_is_wrong_in_an_openai_file_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_published(openai_file(tmp_path / "5.pt", **changes), "openai", layer=6)


# SAELens


def sae_lens_folder(folder: Path, weights: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    config = {
        "d_in": D_MODEL,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cuda",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", "hook_head_index": None},
        "k": K,
        "rescale_acts_by_decoder_norm": False,
        "architecture": "topk",
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": ENCODER.T, "W_dec": DECODER, "b_enc": LATENT_BIAS, "b_dec": PRE_BIAS} | (weights or {})
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("from_input", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_sae_lens_folder_gives_its_reconstruction(
    tmp_path: Path, normalize: str, from_input: bool, rescale: bool
) -> None:
    folder = sae_lens_folder(
        tmp_path,
        normalize_activations=normalize,
        apply_b_dec_to_input=from_input,
        rescale_acts_by_decoder_norm=rescale,
    )
    x, mean, std = per_token(X) if normalize == "layer_norm" else (X, torch.zeros(1), torch.ones(1))
    norm = DECODER.norm(dim=1) if rescale else torch.ones(LATENTS)
    latents = top(((x - PRE_BIAS * from_input) @ ENCODER.T + LATENT_BIAS) * norm) / norm
    close(load_published(folder, "sae-lens", layer=9)(X), (latents @ DECODER + PRE_BIAS) * std + mean)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_the_centred_input_of_a_sae_lens_folder_is_centred(tmp_path: Path, normalize: str) -> None:
    arguments = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    ways = {"since 6.0": {"metadata": arguments}, "before": arguments}
    for name, said in ways.items():
        folder = sae_lens_folder(tmp_path / name, normalize_activations=normalize, **said)
        plain = sae_lens_folder(tmp_path / f"{name}, plain", normalize_activations=normalize)
        sae, expected = (load_published(each, "sae-lens", layer=3) for each in (folder, plain))
        close(sae(X), expected(X - X.mean(1, keepdim=True)) + (X.mean(1, keepdim=True) if normalize != "none" else 0))


def test_a_direction_of_length_0_in_a_sae_lens_folder_stands_for_nothing(tmp_path: Path) -> None:
    decoder = DECODER.clone()
    decoder[3] = 0
    folder = sae_lens_folder(tmp_path, {"W_dec": decoder}, rescale_acts_by_decoder_norm=True)
    norm = decoder.norm(dim=1)
    latents = top(((X - PRE_BIAS) @ ENCODER.T + LATENT_BIAS) * norm) / norm.masked_fill(norm == 0, 1)
    close(load_published(folder, "sae-lens", layer=9)(X), latents @ decoder + PRE_BIAS)


def top_by_size(before: Tensor) -> Tensor:
    kept = before.abs().topk(K).indices
    return torch.zeros_like(before).scatter(1, kept, before.gather(1, kept))


@pytest.mark.parametrize(
    ("theirs", "architecture", "activation"),
    [
        ("standard", "relu", torch.relu),
        ("jumprelu", "jumprelu", lambda before: before.relu() * (before > THRESHOLD)),
        ("abstopk", "abstopk", top_by_size),
    ],
)
def test_the_architectures_of_sae_lens_are_ours(
    tmp_path: Path, theirs: str, architecture: str, activation: Callable[[Tensor], Tensor]
) -> None:
    folder = sae_lens_folder(tmp_path, {"threshold": THRESHOLD}, architecture=theirs)
    sae = load_published(folder, "sae-lens", layer=9)
    close(sae(X), activation((X - PRE_BIAS) @ ENCODER.T + LATENT_BIAS) @ DECODER + PRE_BIAS)
    assert (sae.config.architecture, sae.config.k) == (architecture, K if theirs == "abstopk" else 3)


def test_a_sae_lens_folder_from_before_6_0_is_read(tmp_path: Path) -> None:
    scale = random(LATENTS, seed=5).exp()
    folder = sae_lens_folder(
        tmp_path,
        {"scaling_factor": scale, "W_dec": DECODER.half()},
        architecture="standard",
        activation_fn_str="topk",
        activation_fn_kwargs={"k": K},
        normalize_activations=False,
        finetuning_scaling_factor=True,
        metadata={},
        hook_name="blocks.4.hook_resid_pre",
        k=None,
    )
    sae = load_published(folder, "sae-lens", layer=9)
    latents = top((X - PRE_BIAS) @ ENCODER.T + LATENT_BIAS) * scale
    close(sae(X), latents @ DECODER.half().float() + PRE_BIAS)
    assert sae.config.layer == 4


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.4.hook_resid_pre", ("resid_post", 4)),
        ("blocks.4.hook_resid_mid", ("resid_mid", 5)),
        ("blocks.4.hook_mlp_out", ("mlp_out", 5)),
    ],
)
def test_the_hook_of_a_sae_lens_folder_is_a_site(tmp_path: Path, hook: str, site: tuple[str, int]) -> None:
    config = load_published(sae_lens_folder(tmp_path, metadata={"hook_name": hook}), "sae-lens", layer=9).config
    assert (config.location, config.layer) == site


def test_the_hook_of_a_sae_lens_folder_says_its_layer(tmp_path: Path) -> None:
    assert load_published(sae_lens_folder(tmp_path), "sae-lens", layer=9).config.layer == 2
    assert load_published(sae_lens_folder(tmp_path, metadata={}), "sae-lens", layer=9).config.layer == 9


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "gated"}, "architecture: 'gated'"),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "activation_fn_str: 'tanh-relu'"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations: 'constant_norm_rescale'"),
        ({"normalize_activations": True}, "normalize_activations: True"),
        ({"reshape_activations": "hook_z"}, "reshape_activations: 'hook_z'"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "hook_name: 'blocks.1.attn.hook_z'"),
        ({"d_sae": LATENTS + 1}, "W_enc: must be a tensor of shape"),
        ({"d_in": None}, "d_in: missing"),
        ({"k": None}, "k: missing"),
    ],
)
def test_what_is_wrong_in_a_sae_lens_folder_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_published(sae_lens_folder(tmp_path, **changes), "sae-lens", layer=2)


# sparsify


def sparsify_folder(folder: Path, **changes: Any) -> Path:
    config = {
        "activation": "topk",
        "expansion_factor": 3,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_MODEL,
    }
    weights = {"encoder.weight": ENCODER, "encoder.bias": LATENT_BIAS, "W_dec": DECODER, "b_dec": PRE_BIAS}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return folder


def test_a_sparsify_folder_gives_its_reconstruction(tmp_path: Path) -> None:
    sae = load_published(sparsify_folder(tmp_path), "sparsify", layer=2)
    close(sae(X), top((X - PRE_BIAS) @ ENCODER.T + LATENT_BIAS) @ DECODER + PRE_BIAS)
    assert sae.config == SaeConfig(d_model=D_MODEL, latents=LATENTS, k=K, normalize="none", layer=2)


def test_the_name_of_a_sparsify_folder_says_its_layer(tmp_path: Path) -> None:
    assert load_published(sparsify_folder(tmp_path / "layers.5"), "sparsify", layer=1).config.layer == 6
    assert load_published(sparsify_folder(tmp_path / "h.5.mlp"), "sparsify", layer=1).config.location == "mlp_out"
    with pytest.raises(UserError, match=r"mlp\.act"):
        load_published(sparsify_folder(tmp_path / "layers.5.mlp.act"), "sparsify", layer=1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation": "groupmax"}, "activation: 'groupmax'"),
        ({"transcode": True}, "transcode: True"),
        ({"skip_connection": True}, "skip_connection: True"),
        ({"num_latents": 25}, "encoder.weight: must be a tensor of shape"),
    ],
)
def test_what_is_wrong_in_a_sparsify_folder_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_published(sparsify_folder(tmp_path, **changes), "sparsify", layer=2)


# All


@pytest.mark.parametrize("format", ["openai", "sae-lens", "sparsify"])
def test_a_missing_file_is_one_line(tmp_path: Path, format: Any) -> None:
    with pytest.raises(UserError, match="nowhere") as error:
        load_published(tmp_path / "nowhere", format, layer=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("format", "file"), [("sae-lens", "sae_weights.safetensors"), ("sparsify", "sae.safetensors")])
def test_a_broken_file_is_one_line(tmp_path: Path, format: Any, file: str) -> None:
    save_for(ours(normalize="none"), tmp_path, format)
    (tmp_path / file).write_bytes(b"broken")
    with pytest.raises(UserError, match="not safetensors"):
        load_published(tmp_path, format, layer=2)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_published(tmp_path, format, layer=2)


EXPORTS = [
    *(("sae-lens", each, "token") for each in ("topk", "relu", "jumprelu", "batchtopk", "matryoshka", "abstopk")),
    ("sae-lens", "topk", "none"),
    ("sae-lens", "jumprelu", "whiten"),
    ("sparsify", "topk", "none"),
    ("sparsify", "topk", "whiten"),
]
"""Format, architecture, normalisation."""


@pytest.mark.parametrize(("format", "architecture", "normalize"), EXPORTS)
def test_what_is_written_for_another_project_is_read_as_it_was(
    tmp_path: Path, format: Any, architecture: str, normalize: str
) -> None:
    sae = ours(architecture=architecture, normalize=normalize)
    save_for(sae, tmp_path, format)
    again = load_published(tmp_path, format, layer=9)
    kept = architecture if architecture in ("topk", "abstopk", "relu") else "jumprelu"
    assert again.config.architecture == kept
    close(again(X), sae(X))


@pytest.mark.parametrize("architecture", ["abstopk", "relu", "batchtopk"])
def test_an_architecture_that_sparsify_lacks_is_refused(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(UserError, match=architecture):
        save_for(ours(architecture=architecture, normalize="none"), tmp_path, "sparsify")


def test_per_token_normalisation_is_refused_for_sparsify(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="normalize: none"):
        save_for(ours(normalize="token"), tmp_path / "out", "sparsify")
    assert not (tmp_path / "out").exists()


def test_what_is_written_has_the_fields_that_a_peer_writes(tmp_path: Path) -> None:
    for format, layout in {"sae-lens": sae_lens_folder, "sparsify": sparsify_folder}.items():
        theirs, written = layout(tmp_path / format / "theirs"), tmp_path / format / "written"
        save_for(ours(normalize="none"), written, format)  # type: ignore[arg-type]
        for file in theirs.iterdir():
            if file.suffix == ".json":
                assert json.loads((written / file.name).read_text()).keys() == json.loads(file.read_text()).keys()
            else:
                shapes = [{n: w.shape for n, w in load_file(each / file.name).items()} for each in (theirs, written)]
                assert shapes[0] == shapes[1]


LOADERS = {
    "sae-lens": "from sae_lens import SAE; model = SAE.load_from_disk(folder)",
    "sparsify": "from sparsify import SparseCoder; model = lambda x: SparseCoder.load_from_disk(folder)(x).sae_out",
}
"""`model` of a folder, in the words of the library."""


@pytest.mark.parametrize("format", LOADERS)
def test_the_libraries_themselves_give_our_reconstruction(tmp_path: Path, format: Any) -> None:
    python = PEERS / format / "bin/python"
    if not python.exists():
        pytest.skip("needs the environments of `make peers`")
    np.save(tmp_path / "x.npy", X.numpy())
    saes = {}
    for each, architecture, normalize in EXPORTS:
        if each == format:
            saes[f"{architecture}-{normalize}"] = ours(architecture=architecture, normalize=normalize)
    for name, sae in saes.items():
        save_for(sae, tmp_path / name, format)
    program = f"""
import sys, numpy, torch
x = torch.from_numpy(numpy.load("x.npy"))
for folder in sys.argv[1:]:
    {LOADERS[format]}
    with torch.no_grad():
        numpy.save(folder + ".npy", model(x).numpy())
"""
    command = [str(python), "-c", program, *saes]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"SPARSIFY_DISABLE_TRITON": "1", "HOME": "."}
    )
    assert done.returncode == 0, done.stderr
    for name, sae in saes.items():
        close(sae(X), torch.from_numpy(np.load(tmp_path / f"{name}.npy")))


def test_what_is_exported_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    sae = SparseAutoencoder(SaeConfig(d_model=D_MODEL, latents=LATENTS, k=K, normalize="none", layer=3))
    for each in (sae.encoder, sae.decoder):
        torch.nn.init.zeros_(each)
    before = os.umask(0o027)
    try:
        for format in ("sae-lens", "sparsify"):
            save_for(sae, tmp_path / format, format)
    finally:
        os.umask(before)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.glob("*/*")}
    assert set(modes.values()) == {0o640}, modes


def test_the_configuration_is_known_before_the_weights_are_read(tmp_path: Path) -> None:
    site = Site("resid_post", 2)
    file = openai_file(tmp_path / "5.pt")
    folders = {"sae-lens": sae_lens_folder(tmp_path / "lens"), "sparsify": sparsify_folder(tmp_path / "sparse")}
    paths: dict[Any, Path] = {"openai": file, **folders}
    expected = {format: load_published(path, format, layer=2).config for format, path in paths.items()}
    for folder in folders.values():
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
    openai_file(file, **{"encoder.weight": torch.full((LATENTS, D_MODEL), torch.nan)})
    assert {format: formats.published_config(path, format, site, k=3) for format, path in paths.items()} == expected
    for format, path in paths.items():
        with pytest.raises(UserError):
            load_published(path, format, layer=2)


def test_the_configuration_of_a_large_openai_file_takes_no_memory(tmp_path: Path) -> None:
    large = torch.zeros(2**18, 64)  # 64 MiB
    path = openai_file(
        tmp_path / "5.pt",
        **{"latent_bias": torch.zeros(2**18), "encoder.weight": large, "decoder.weight": large.T, "pre_bias": large[0]},
    )
    program = f"""
import resource
from pathlib import Path
from cocomix.params import Site
from cocomix.sae.formats import published_config
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert published_config(Path({str(path)!r}), "openai", Site("resid_post", 2), 1).latents == 2**18
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**14  # KiB

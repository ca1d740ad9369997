"""The presets with published teachers, on stand-ins: small models and autoencoders in the files that they name."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import stages.activations
import stages.attribution
import stages.base
import stages.base_tokens
import stages.corpus
import stages.distribution
import stages.evaluate
import stages.explain
import stages.methods
import stages.pretrain
import stages.report
import stages.sae
import stages.steer
import stages.tokenize
from cocomix.base.loading import load_base
from cocomix.check.preflight import preflight
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.checked import merge, parse, read_yaml
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.shapes.planning.corpus import estimated_corpus
from cocomix.shapes.planning.stages import stage_needs
from tests.conftest import write_files
from tests.stages.test_dvc_yaml import ROOT

WIDTH = 32
SMALL: dict[str, Any] = {
    "corpus": {"validation_share": 0.2, "test_share": 0.2},
    "sae": {"latents": 2 * WIDTH},
    "attribution": {"score": "activation"},
    "distribution": {"draws": None},
    "pretrain": {"training": {"steps": 4, "eval_every": 4, "checkpoint_every": 4, "eval_windows": 8}},
    "steer": {"concepts": 2, "strengths": [-5, 5], "new_tokens": 3, "read_windows": 2},
}
"""What is smaller than in `smoke`, and what the presets leave as shipped."""


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """As GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def byte_fallback(texts: list[str]) -> PreTrainedTokenizerFast:
    """As Mistral's: SentencePiece's marks of white space, and bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2(vocab_size: int) -> PreTrainedModel:
    """With the blocks of GPT-2 124M."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_embd=WIDTH,
            n_layer=12,
            n_head=2,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.2,
        )
    )


def mistral(vocab_size: int) -> PreTrainedModel:
    """In bf16, as Mistral 7B is stored; with a third of its blocks."""
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=64,
        sliding_window=48,
        initializer_range=0.2,
    )
    return MistralForCausalLM(config).bfloat16()


def directions() -> torch.Tensor:
    """Orthogonal directions, each with its opposite: the positive parts along them add up to any vector."""
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    return torch.cat([axes, -axes])


def openai_v5(path: Path) -> None:
    """As OpenAI's file: 32 active latents."""
    path.parent.mkdir(parents=True)
    content: dict[str, Any] = {
        "pre_bias": torch.zeros(WIDTH),
        "latent_bias": torch.zeros(2 * WIDTH),
        "encoder.weight": directions(),
        "activation": "TopK",
        "activation_state_dict": {"k": 32, "postact_fn": "ReLU"},
        "stats_last_nonzero": torch.zeros(2 * WIDTH, dtype=torch.int64),
    }
    torch.save(content | {"decoder.weight": content["encoder.weight"].T.contiguous()}, path)


def sae_lens(folder: Path) -> None:
    """As a folder of SAELens before 6.0."""
    folder.mkdir(parents=True)
    config = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": 2 * WIDTH,
        "dtype": "torch.float32",
        "model_name": "mistral-7b",
        "hook_name": "blocks.8.hook_resid_pre",
        "hook_layer": 8,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        "prepend_bos": True,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    decoder, bias = directions(), {"b_enc": torch.zeros(2 * WIDTH), "b_dec": torch.zeros(WIDTH)}
    save_file({"W_enc": decoder.T.contiguous(), "W_dec": decoder} | bias, folder / "sae_weights.safetensors")


TEACHERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[Path], None]]] = {
    "teacher-gpt2": (byte_level, gpt2, openai_v5),
    "teacher-mistral": (byte_fallback, mistral, sae_lens),
}
"""The stand-ins of each preset's tokenizer, model and autoencoder."""


def asked(preset: str, **changes: Any) -> Params:
    """The preset at smoke size."""
    content = read_yaml(ROOT / "params.yaml")
    for each in (*(read_yaml(ROOT / f"presets/{name}.yaml") for name in ("default", "smoke", preset)), SMALL, changes):
        merge(content, each)
    return parse(Params, content, preset)


@pytest.fixture(params=TEACHERS)
def preset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A preset; in the working directory are texts, and stand-ins in the places that it names."""
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    runtime.cache_clear()
    with chdir(tmp_path):
        shutil.copytree(ROOT / "presets", "presets")
        texts = [text[:2500] for text in list(topics.values())[:24]]
        write_files(Path(), {f"texts/{number}.txt": text for number, text in enumerate(texts)})
        tokenizer_like, model_like, published_like = TEACHERS[request.param]
        params = asked(request.param)
        torch.manual_seed(0)
        tokenizer = tokenizer_like(texts)
        for each in (tokenizer, model_like(len(tokenizer))):
            each.save_pretrained(str(params.base.pretrained))
        published_like(Path(str(params.sae.published.path)))
        yield request.param
    runtime.cache_clear()


def test_a_preset_with_a_published_teacher_runs_from_text_to_report(preset: str) -> None:
    params = asked(preset)
    preflight(params)
    for name in ("corpus", "tokenize", "base_tokens", "base", "activations", "sae", "attribution", "distribution"):
        getattr(stages, name).run(params)
    measured = json.loads(Path("metrics/sae.json").read_bytes())
    assert measured["fvu"] < 0.01
    assert measured["loss_recovered"] > 0.9
    assert load_base(Artifact(Path("artifacts/base")), 32).dtype == stages.base.DTYPES[params.base.dtype]
    for name in ("explain", "methods"):
        getattr(stages, name).run(params)
    for method in params.pretrain.methods:
        stages.pretrain.run(params, method, 0)
        stages.evaluate.run(params, method, 0)
    for name in ("steer", "report"):
        getattr(stages, name).run(params)
    assert "cocomix" in Path("artifacts/report/index.html").read_text()


def test_the_documentation_fetches_the_files_that_the_presets_name() -> None:
    concepts, readme = (ROOT / "docs/concepts.md").read_text(), (ROOT / "README.md").read_text()
    openai, sae_lens_folder = (Path(str(asked(each).sae.published.path)) for each in TEACHERS)
    for page in (concepts, readme):
        target, address = re.findall(r"^curl --create-dirs -o (\S+) \\\n  (\S+)$", page, re.M)[0]
        assert Path(target) == openai
        assert address.endswith(f"/{openai.parent.name}/autoencoders/{openai.name}")
    (included, folder), *_ = re.findall(r'^hf download .* --include "(.*)" --local-dir (\S+)$', concepts, re.M)
    assert Path(folder, included).parent == sae_lens_folder
    (own_text,) = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    content = read_yaml(ROOT / "params.yaml")
    merge(content, YAML(typ="safe").load(own_text))
    assert parse(Params, content, "README.md").corpus.files.paths == asked("teacher-gpt2").corpus.files.paths


def test_what_such_a_preset_needs_is_checked_and_estimated_before_any_work(preset: str) -> None:
    params = asked(preset)
    preflight(params)
    needs = stage_needs(params, estimated_corpus(params, 1e6))
    assert needs["activations"].memory < needs["explain"].memory
    with pytest.raises(UserError, match=r"other tokens, which does not go with pretrain\.kd\.kl_weight \(1\);"):
        asked(preset, pretrain={"methods": ["ntp", "kd"]})
    path = Path(str(params.sae.published.path))
    path.rename("elsewhere")
    with pytest.raises(UserError, match=rf"^sae\.published\.path: {path}: no such file or folder$"):
        preflight(params)
    Path("elsewhere").rename(path)
    for each in Path("texts").iterdir():
        each.unlink()
    with pytest.raises(UserError, match=r"^corpus\.files\.paths: "):
        preflight(params)

"""Saved models load like any of the library's, with this package and without it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Qwen3Config,
    pipeline,
)

from cocomix.modeling import CoCoMixConfig, CoCoMixLlamaForCausalLM, CoCoMixModel
from cocomix.models.card import Trained
from cocomix.tokens.tokenizer import load_trained, train_tokenizer
from cocomix.tokens.windows import TextOrigin
from stages.pretrain import write_model
from tests.modeling.conftest import LLAMA, VARIANTS, ids, named, tiny

MODELING = Path(__file__).parents[2] / "cocomix" / "modeling"

WITHOUT_THE_PACKAGE = """
import json, sys
from importlib.abc import MetaPathFinder


class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cocomix":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM

tokens, done = torch.tensor(json.loads(sys.argv[1])), {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    done[folder] = [model(tokens).logits.tolist(), model.generate(tokens, **settings).tolist()]
    assert not any(each.split(".")[0] == "cocomix" for each in sys.modules)
print(json.dumps(done))
"""


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_a_saved_model_says_the_same(tmp_path: Path, variant: dict[str, object]) -> None:
    model = tiny(**variant)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    unlike = {"_name_or_path": None, "dtype": None}
    assert loaded.config.to_dict() | unlike == model.config.to_dict() | unlike
    torch.testing.assert_close(loaded(ids(2, 8)).logits, model(ids(2, 8)).logits, atol=0, rtol=0)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize(
    "file", sorted(set(MODELING.glob("*.py")) - {MODELING / "__init__.py"}), ids=lambda file: file.stem
)
def test_a_file_that_travels_with_a_model_imports_what_is_ours_relatively(file: Path) -> None:
    ours = {each.name for each in MODELING.parents[1].iterdir() if any(each.glob("*.py"))}
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=names):
                assert not {each.name.partition(".")[0] for each in names} & ours
            case ast.ImportFrom(module=str(module), level=0):
                assert module.partition(".")[0] not in ours
            case ast.ImportFrom(module=module, level=level):
                assert level == 1
                assert (MODELING / f"{module}.py").exists()


def test_every_file_of_the_folder_travels_with_a_saved_model(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    assert {each.name for each in tmp_path.glob("*.py")} == {each.name for each in MODELING.glob("*.py")} - {
        "__init__.py"
    }


def test_the_body_loads_alone() -> None:
    assert isinstance(AutoModel.from_config(tiny().config), CoCoMixModel)


def test_the_same_model_is_saved_as_the_same_bytes_and_so_is_what_is_loaded_from_them(tmp_path: Path) -> None:
    first, second, third = (tmp_path / each for each in ("first", "second", "third"))
    tiny().save_pretrained(first)
    tiny().save_pretrained(second)
    AutoModelForCausalLM.from_pretrained(first).save_pretrained(third)
    assert files(first) == files(second) == files(third)


@pytest.mark.parametrize("change", [{"num_concepts": 30}, {"mixing": "interleave"}], ids=named)
def test_what_of_the_concept_head_is_not_in_the_folder_begins_anew(tmp_path: Path, change: dict[str, object]) -> None:
    tiny(mixing="none" if "mixing" in change else "interleave").save_pretrained(tmp_path)
    for _ in range(3):  # memory that nothing was written to is often zero
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **change, ignore_mismatched_sizes=True)
        spread = loaded.transformer.mixer.compress.weight.std()
        assert 0.5 < spread / loaded.config.initializer_range < 2
        assert loaded(ids(2, 8)).logits.isfinite().all()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_plain_llama_goes_on_as_one_that_predicts_concepts(tmp_path: Path, qk_norm: bool) -> None:
    config = tiny("llama", qk_norm=qk_norm, n_kv_head=2, mixing="none").config
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "initializer_range")
    fields = {name: getattr(config, name) for name in (*shape, "num_attention_heads", "num_key_value_heads")}
    kind = Qwen3Config if qk_norm else LlamaConfig
    plain = AutoModelForCausalLM.from_config(kind(**fields, tie_word_embeddings=True)).eval()
    plain.save_pretrained(tmp_path)
    model = CoCoMixLlamaForCausalLM.from_pretrained(tmp_path, config=config)
    torch.testing.assert_close(model(ids(2, 8)).logits, plain(ids(2, 8)).logits, atol=0, rtol=0)


def test_a_gate_that_is_not_in_the_folder_begins_at_zero(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    for _ in range(3):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gate=True)
        assert loaded.transformer.mixer.gate.weight.tolist() == [0.0]


def test_a_model_saved_before_there_were_gates_and_mlps_has_neither(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields.pop("gate"), fields.pop("mlp_width")) == (False, 0)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids(2, 8)).logits, tiny()(ids(2, 8)).logits, atol=0, rtol=0)


def test_a_model_loads_without_the_package_and_computes_the_same_bits(tmp_path: Path) -> None:
    chosen = [{}, {"mixing": "add", "concept_head": "equations"}, {"predicts": "hidden"}, {"predicts": "nothing"}]
    chosen += [{"mixing": "interleave", "gate": True}, {"predicts": "nothing", "mlp_width": 20, "mixing": "add"}]
    chosen += [{**LLAMA, "mixing": "interleave"}, {"backbone": "llama", "concept_head": "equations"}]
    assert all(any(change.items() <= each.items() for each in VARIANTS) for change in chosen)
    expected = {}
    for change in chosen:
        folder, model = tmp_path / (named(change)), tiny(**change)
        model.save_pretrained(folder)
        tokens = model.generate(ids(2, 8), max_new_tokens=5, do_sample=False, eos_token_id=None)
        expected[str(folder)] = [model(ids(2, 8)).logits.tolist(), tokens.tolist()]
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, json.dumps(ids(2, 8).tolist()), *expected],
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_a_saved_configuration_is_read_with_the_package_without_trusting_code(tmp_path: Path) -> None:
    tiny().config.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CoCoMixConfig)


def test_the_text_generation_pipeline_takes_batches_from_a_folder_as_the_stage_writes_it(tmp_path: Path) -> None:
    texts = ["The model returns a list.", "It"]
    train_tokenizer(texts, 270).save(str(tmp_path / "trained.json"))
    model, tokenizer = tiny(vocab_size=270), load_trained(tmp_path / "trained.json")
    trained = Trained("cocomix-0", "cocomix", TextOrigin("files"), 48, tokens=1, flops=1.0, validation_loss=1.0)
    write_model(tmp_path / "model", model, tokenizer, trained)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").padding_side == "left"
    generate = pipeline("text-generation", model=str(tmp_path / "model"))
    assert generate.tokenizer.model_max_length == model.config.n_positions
    options = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    together = generate(texts, **options, batch_size=2)
    expected = [
        tokenizer.decode(model.generate(tokenizer(each, return_tensors="pt").input_ids, **options_of(options))[0, -4:])
        for each in texts
    ]
    assert [each[0]["generated_text"] for each in together] == expected


def options_of(options: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if key != "return_full_text"}


@pytest.mark.parametrize("change", [{}, {"mixing": "add"}, LLAMA], ids=named)
def test_embeddings_can_be_resized_and_stay_tied(change: dict[str, object]) -> None:
    model = tiny(**change)
    model.resize_token_embeddings(70)
    assert model(ids(1, 4)).logits.shape[-1] == 70
    assert model.lm_head.weight is model.get_input_embeddings().weight

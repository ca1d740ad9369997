"""The stages go on from a pretrained model, as docs/methods.md says."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

import stages.methods
import stages.pretrain
from cocomix.evaluation.language_model import score_text
from cocomix.evaluation.text import split_text
from cocomix.params import Params
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens
from tests.conftest import VOCAB, stopped_beyond
from tests.stages.test_parameters import Read, artifacts, parameters, read, undeclared

__all__ = ["artifacts", "read"]
DOCS = (Path(__file__).parents[2] / "docs/methods.md").read_text().partition("## Going on from a checkpoint")[2]
EXAMPLE = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DOCS, re.S)[0])
METHODS = ("ntp", "kd", "pause", "mtp", "predicted", "cocomix")


def going_on(*changes: Mapping[str, Any]) -> Params:
    """The parameters of the example, of the size of the fixtures, with a folder in place of the hub's GPT-2."""
    small = {
        "tokenize": {"context": 16},
        "pretrain": {"init": {"path": "pretrained", "revision": None}, "cocomix": {"concept_layer": 3}},
    }
    return parameters(EXAMPLE, small, *changes)


_SHAPE = {"vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
_QWEN3 = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
_QWEN3 |= {"intermediate_size": 32, "max_position_embeddings": 20, "tie_word_embeddings": True}
CONFIGS = {
    "gpt2": GPT2Config(**_SHAPE, n_embd=24, n_layer=4, n_head=2, n_positions=20),
    "qwen3": Qwen3Config(**_SHAPE, **_QWEN3),
}


@pytest.fixture
def pretrained(request: pytest.FixtureRequest, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A random GPT-2, or model of the given family, in the folder `pretrained`, with the tokenizer of the tokens."""
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    runtime.cache_clear()
    torch.manual_seed(5)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[getattr(request, "param", "gpt2")])
    model.save_pretrained("pretrained")
    PreTrainedTokenizerFast.from_pretrained(artifacts / "tokens/tokenizer").save_pretrained("pretrained")
    return model


@pytest.mark.parametrize("pretrained", CONFIGS, indirect=True)
def test_every_method_of_the_example_takes_the_shape_and_starts_with_the_loss(pretrained: PreTrainedModel) -> None:
    params = going_on({"pretrain": {"training": {"steps": 1, "learning_rate": 1e-9, "eval_windows": 24}}})
    assert params.pretrain.methods == EXAMPLE["pretrain"]["methods"]
    expected = score_text(pretrained, split_text(Tokens(), "validation"), 8, "the pretrained model").whole.loss
    stages.methods.run(params)
    for method in params.pretrain.methods:
        stages.pretrain.run(params, method, 0)
        folder = Path(f"artifacts/models/{method}-0")
        model = AutoModelForCausalLM.from_pretrained(folder)
        shape = model.config.hidden_size, model.config.num_hidden_layers, model.config.max_position_embeddings
        assert shape == (24, 4, 20)
        assert "| Went on from | a model of a local folder |" in (folder / "README.md").read_text()
        found = json.loads(Path(f"metrics/pretrain/{method}-0.json").read_text())
        assert found["validation_loss"] == pytest.approx(expected, abs=1e-4)
        assert found["parameters"]["stored"] == sum(each.numel() for each in model.parameters())


def test_a_training_that_died_goes_on_to_the_same_bits(pretrained: PreTrainedModel) -> None:
    params = going_on({"pretrain": {"training": {"steps": 6, "checkpoint_every": 2}}})
    stages.methods.run(params)
    with stopped_beyond(4 * 8 * 16), pytest.raises(Interrupted):
        stages.pretrain.run(params, "cocomix", 0)
    stages.pretrain.run(params, "cocomix", 0)
    model = Path("artifacts/models/cocomix-0/model.safetensors")
    resumed = model.read_bytes()
    for each in Path("artifacts/.work").glob("pretrain@*"):
        shutil.rmtree(each)
    stages.pretrain.run(params, "cocomix", 0)
    assert model.read_bytes() == resumed


def test_a_base_model_that_two_losses_read_is_loaded_once(
    pretrained: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], stages.pretrain.load_base
    monkeypatch.setattr(stages.pretrain, "load_base", lambda *given: loaded.append(load(*given)) or loaded[-1])
    both = {"predicts": "hidden", "kd": {"kl_weight": 1.0, "source": "online"}}
    params = going_on({"pretrain": {"methods": ["both"], "forms": {"both": both}, "training": {"steps": 1}}})
    stages.methods.run(params)
    stages.pretrain.run(params, "both", 0)
    assert len(loaded) == 1


def test_other_weights_in_the_folder_are_other_work(pretrained: PreTrainedModel) -> None:
    params = going_on()
    stages.methods.run(params)
    stages.pretrain.run(params, "ntp", 0)
    model = Path("artifacts/models/ntp-0/model.safetensors")
    first = model.read_bytes()
    with torch.no_grad():
        pretrained.get_input_embeddings().weight.mul_(2)
    pretrained.save_pretrained("pretrained")
    stages.pretrain.run(params, "ntp", 0)
    assert model.read_bytes() != first


def test_the_stages_read_what_dvc_yaml_says(pretrained: PreTrainedModel, read: Read) -> None:
    params = going_on({"distribution": {"draws": 50}, "pretrain": {"methods": [*METHODS]}})
    stages.methods.run(read.watch(params))
    assert "pretrain.init.path" in read.keys
    assert undeclared(read.keys, "methods") == set()
    for method in METHODS:
        stages.pretrain.run(read.watch(params), method, 0)
        assert "pretrain.init.path" in read.keys
        assert undeclared(read.keys, "pretrain", method) == set()


def test_a_model_of_other_tokens_is_refused_before_any_training(pretrained: PreTrainedModel) -> None:
    path = Path("pretrained/tokenizer.json")
    path.write_text(path.read_text().replace('"w1"', '"other"'))
    with pytest.raises(
        UserError,
        match=r"^pretrain\.init\.path: 'pretrained' has another tokenizer than the tokens: .* "
        r"and tokenize\.revision to pretrain\.init\.revision$",
    ):
        stages.methods.run(going_on())
    GPT2Config(n_embd=8, n_layer=4, n_head=2, n_positions=20, vocab_size=50).save_pretrained("pretrained")
    with pytest.raises(UserError, match=r"'pretrained' has a vocabulary of 50; the tokens need 64"):
        stages.methods.run(going_on())

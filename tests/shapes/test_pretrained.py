"""The shape of models that go on from a pretrained one."""

from typing import Any

import pytest
from transformers import GPT2Config

from cocomix.models.accounting import parameters_of
from cocomix.models.configs import config_of
from cocomix.params import Params
from cocomix.plumbing.checked import parse
from cocomix.plumbing.errors import UserError
from cocomix.shapes.models import TeacherSizes, shapes
from cocomix.shapes.planning.corpus import CorpusSize, Words
from cocomix.shapes.planning.stages import stage_needs
from cocomix.shapes.pretrained import pretrained_shape
from tests.shipped import paper_values

CONFIG = GPT2Config(
    n_embd=48, n_layer=5, n_head=3, n_positions=1024, n_inner=100, vocab_size=70, layer_norm_epsilon=1e-3
).to_dict()
TOKENS = Words(64, 128)
TEACHER = TeacherSizes(40, 32, 100, 50)


def params(**changes: Any) -> Params:
    content = paper_values()
    content["pretrain"] |= {"match": "width", "init": {"source": "pretrained", "path": "gpt2"}, **changes}
    return parse(Params, content, "test")


def test_the_shape_is_the_models_and_its_vocabulary_that_of_the_tokens() -> None:
    config = config_of(pretrained_shape(CONFIG, 0.2, TOKENS))
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions, config.n_inner) == (48, 5, 3, 1024, 100)
    assert (config.vocab_size, config.layer_norm_epsilon, config.resid_pdrop) == (64, 1e-3, 0.2)
    assert config.activation_function == "gelu_pytorch_tanh"
    other = pretrained_shape(CONFIG | {"activation_function": "relu"}, 0.2, TOKENS)
    assert config_of(other).activation_function == "relu"


def test_every_method_has_it() -> None:
    pretrain = params(forms={"predicted": {"mixing": "none"}}).pretrain
    trunk = pretrained_shape(CONFIG, 0.0, TOKENS)
    for name, shape in shapes(pretrain, TOKENS, TEACHER, trunk).items():
        assert shape is not None, name
        assert shape.items() >= trunk.items(), name


@pytest.mark.parametrize("match", ["stored", "active", "flops"])
def test_a_match_by_width_alone_is_possible(match: str) -> None:
    with pytest.raises(UserError, match=rf"match \({match}\) must be width with init\.source: pretrained"):
        params(match=match)


def test_a_path_must_be_given() -> None:
    with pytest.raises(UserError, match=r"pretrain\.init: source is pretrained, which needs path"):
        params(init={"source": "pretrained"})


def test_a_plan_without_the_model_needs_a_shape_that_has_the_concept_layer() -> None:
    splits = ("train", "validation", "test")
    text = CorpusSize(dict.fromkeys(splits, 4e6), dict.fromkeys(splits, 1e6), 64)
    deep = params(cocomix=paper_values()["pretrain"]["cocomix"] | {"concept_layer": 4})
    assert stage_needs(deep, text, CONFIG)
    with pytest.raises(UserError, match=r"pretrain\.cocomix\.concept_layer \(4\) is not below .*: to plan, "):
        stage_needs(deep, text)


def test_a_plan_counts_the_models_shape_and_the_windows_context() -> None:
    text = CorpusSize(
        dict.fromkeys(("train", "validation", "test"), 4e6), {"train": 1e6, "validation": 2e5, "test": 2e5}, 64
    )
    asked = params(methods=["ntp"])
    shape = pretrained_shape(CONFIG, 0.0, Words(64, asked.tokenize.context))
    found = stage_needs(asked, text, CONFIG)["pretrain@ntp-0"]
    as_long = stage_needs(asked, text, CONFIG | {"n_positions": 4096})["pretrain@ntp-0"]
    assert found.memory >= 16 * parameters_of(config_of(shape)).stored
    assert (found.flops, found.window_memory) == (as_long.flops, as_long.window_memory)
    assert found.flops != stage_needs(asked, text)["pretrain@ntp-0"].flops

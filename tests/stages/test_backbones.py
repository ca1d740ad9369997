"""The stages that make and measure models, on Llama's blocks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import stages.base
import stages.distribution
import stages.evaluate
import stages.methods
import stages.pretrain
import stages.steer
from cocomix.explore.load import load_model
from cocomix.params import Params
from cocomix.plumbing.runtime import runtime
from cocomix.steering.reading import information_gain
from tests.stages.test_parameters import parameters
from tests.steering.conftest import publish_concepts

LLAMA = {"backbone": "llama", "n_kv_head": 1, "qk_norm": True}
MODEL = {"d_model": 32, "n_layer": 3, "n_head": 2, **LLAMA}
FORMS = {"predicted": {"mixing": "none"}, "added": {"mixing": "add"}, "hidden": {"predicts": "hidden"}}
TYPES = dict.fromkeys(("ntp", "kd", "mtp"), "qwen3") | dict.fromkeys(("pause", "cocomix", *FORMS), "cocomix_llama")


def llama_params() -> Params:
    cocomix = {"mixing": "interleave", "teacher_forcing": 0.0}
    pretrain: dict[str, Any] = {"methods": [*TYPES], "forms": FORMS, "model": MODEL, "cocomix": cocomix}
    training = {"steps": 2, "batch_size": 8, "eval_windows": 8}
    return parameters({"base": {"model": MODEL, "training": training}, "pretrain": pretrain})


def test_base_model_and_each_method_are_trained_on_llama_and_measured(
    tokens_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    runtime.cache_clear()
    params = llama_params()
    stages.base.run(params)
    assert AutoModelForCausalLM.from_pretrained("artifacts/base").config.model_type == "qwen3"
    stages.distribution.run(params)
    publish_concepts(Path("artifacts/base"), params.attribution)
    stages.methods.run(params)
    for method, kind in TYPES.items():
        stages.pretrain.run(params, method, 0)
        model = AutoModelForCausalLM.from_pretrained(f"artifacts/models/{method}-0")
        made = json.loads(Path(f"metrics/pretrain/{method}-0.json").read_text())
        assert (model.config.model_type, made["d_model"]) == (kind, model.config.hidden_size)
        assert made["parameters"]["stored"] == sum(each.numel() for each in model.parameters())
    for method in ("ntp", "cocomix"):
        stages.evaluate.run(params, method, 0)
        assert json.loads(Path(f"metrics/evaluate/{method}-0.json").read_text())["validation"]["loss"] > 0
    stages.steer.run(params)
    model, _ = load_model(Path("artifacts/models/cocomix-0"))
    assert information_gain(model, torch.arange(8)).any()
    assert Path("artifacts/steering/manifest.json").exists()

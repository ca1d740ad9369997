from pathlib import Path
from typing import Any

import pytest

from cocomix.params import SaeParams, load
from cocomix.plumbing.errors import UserError
from tests.params.changed import refusal
from tests.shipped import SHIPPED, paper_form


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  k: 32", "  k: 3.0", "sae.k: 3.0: input should be a valid integer"),
        ("  k: 32", "  k: '3'", "sae.k: '3': input should be a valid integer"),
        ("  k: 32", "  k: true", "sae.k: True: input should be a valid integer"),
        ("  k: 32", "  k: 0", "sae.k: 0: input should be greater than 0"),
        ("  k: 32", "  k: null", "sae.k: None: input should be a valid integer"),
        ("  k: 32", "  k: [1]", "sae.k: [1]: input should be a valid integer"),
        ("  k: 32", "", "sae.k: missing; it must be given"),
        ("  k: 32", "  kk: 32", "sae.kk: unknown key; did you mean 'k'?"),
        ("  k: 32", "  k: 5000", "sae: k (5000) must not exceed latents (1024)"),
        ("  learning_rate: 1.0e-3", "  learning_rate: .inf", "sae.learning_rate: inf: input should be a finite number"),
        ("  learning_rate: 1.0e-3", "  learning_rate: -1", "sae.learning_rate: -1: input should be greater than 0"),
        ("also: {}", "also: {a: {width: 3}}", "sae.also.a.width: unknown key; allowed: "),
        ("also: {}", "also: {a: {k: 5000}}", "sae: also.a: k (5000) must not exceed latents (1024)"),
        ("also: {}", "also: {a: {k: null}}", "sae: also.a.k: Input should be a valid integer"),
        ("also: {}", "also: {a: {architecture: relu}}", "sae: also.a: sparsity_weight (None) is for relu and jumprelu"),
        ("also: {}", "also: {a/b: {k: 5}}", "sae.also.a/b: 'a/b': string should match pattern"),
        (
            "architecture: topk",
            "architecture: relu",
            "sae: sparsity_weight (None) is for relu and jumprelu, which need",
        ),
        (
            "sparsity_weight: null",
            "sparsity_weight: 1",
            "sae: sparsity_weight (1.0) is for relu and jumprelu, which ne",
        ),
        ("architecture: topk", "architecture: matryoshka", "sae: prefixes ([]) are for matryoshka, which needs them; "),
        ("prefixes: []", "prefixes: [64]", "sae: prefixes ([64]) are for matryoshka, which needs them; architecture i"),
        ("ema: null", "ema: 1.0", "sae.ema: 1.0: input should be less than 1"),
    ],
)
def test_a_wrong_value_of_the_autoencoder_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)


@pytest.mark.parametrize("prefixes", ["[256, 64]", "[64, 64]", "[64, 1024]"])
def test_dictionaries_within_must_grow_up_to_the_whole(tmp_path: Path, prefixes: str) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("architecture: topk", "architecture: matryoshka")
    path.write_text(text.replace("prefixes: []", f"prefixes: {prefixes}"))
    with pytest.raises(UserError, match=r"sae: prefixes \(.*\) must ascend and be below latents \(1024\)"):
        load(path)


@pytest.mark.parametrize(
    ("own", "changes", "expected"),
    [
        ({"architecture": "relu", "sparsity_weight": 0.1}, {"architecture": "topk"}, {"sparsity_weight": None}),
        ({"architecture": "relu", "sparsity_weight": 0.1}, {"k": 8}, {"sparsity_weight": 0.1}),
        ({"architecture": "relu", "sparsity_weight": 0.1}, {"architecture": "relu"}, {"sparsity_weight": 0.1}),
        ({"architecture": "matryoshka", "prefixes": [64]}, {"architecture": "topk"}, {"prefixes": []}),
        ({"architecture": "matryoshka", "prefixes": [64]}, {"prefixes": [8]}, {"prefixes": [8]}),
        ({}, {"architecture": "jumprelu", "sparsity_weight": 1.0}, {"sparsity_weight": 1.0}),
        ({"ema": 0.99}, {"ema": None}, {"ema": None}),
        ({"ema": 0.99}, {}, {"ema": 0.99}),
    ],
    ids=str,
)
def test_another_autoencoder_is_the_first_but_for_what_is_given(
    own: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    shipped = load(SHIPPED).sae
    params = SaeParams.model_validate(shipped.model_dump() | own | {"also": {"other": changes}})
    other = params.others()["other"]
    assert other == SaeParams.model_validate(shipped.model_dump() | own | changes | expected)
    assert SaeParams.model_validate(params.model_dump()).others() == {"other": other}


def test_an_autoencoder_may_have_fewer_latents_than_could_revive(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(paper_form().replace("also: {}", "also: {small: {latents: 32}}"))
    assert load(path).sae.others()["small"].aux_k > 32

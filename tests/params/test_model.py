from pathlib import Path

import pytest

from tests.params.changed import refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    n_head: 4",
            "    n_head: 5",
            "base.model: d_model (128) must be",
        ),
        ("backbone: gpt2, ", "backbone: gpt3, ", "pretrain.model.backbone: 'gpt3': input should be 'gpt2' or 'llama'"),
        (
            "n_kv_head: null, ",
            "n_kv_head: 2, ",
            "pretrain.model: n_kv_head and qk_norm are of backbone: llama; with gpt2,",
        ),
        (
            "qk_norm: false, ",
            "qk_norm: true, ",
            "pretrain.model: n_kv_head and qk_norm are of backbone: llama; with gpt2,",
        ),
        (
            "gpt2, d_model: 192",
            "llama, d_model: 198",
            "pretrain.model: d_model (198) must be an even multiple of n_head",
        ),
        (
            "{backbone: gpt2, d_model: 192, n_layer: 4, n_head: 6, n_kv_head: null",
            "{backbone: llama, d_model: 192, n_layer: 4, n_head: 6, n_kv_head: 4",
            "pretrain.model: n_head (6) must be a multiple of n_kv_head (4)",
        ),
        (
            "{backbone: gpt2, d_model: 192, n_layer: 4, n_head: 6, n_kv_head: null, qk_norm: false, dropout: 0.0}",
            "{backbone: llama, d_model: 192, n_layer: 4, n_head: 6, dropout: 0.1}",
            "pretrain.model: dropout (0.1) must be 0 with backbone: llama",
        ),
    ],
)
def test_a_model_that_cannot_be_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)

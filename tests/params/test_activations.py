from pathlib import Path

import pytest

from tests.params.changed import refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[resid_post_2]", "[mlp_2]", "activations.sites.0: 'mlp_2': allowed: resid_post, resid_mid, attn_out, "),
        ("[resid_post_2]", "[mlp_out_0]", "activations.sites.0: 'mlp_out_0': allowed: resid_post, resid_mid, "),
        ("[resid_post_2]", "[mlp_out_1, mlp_out_1]", "activations: sites lists a value twice: ['mlp_out_1', 'mlp_out_"),
        ("keep: true", "keep: false", "activations: keep is false, which needs mixed_shards: as many files as fit"),
        ("drop_tokens: []", "drop_tokens: [1.5]", "activations.drop_tokens.0: 1.5: input should be a valid integer"),
    ],
)
def test_a_wrong_value_of_the_activations_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)

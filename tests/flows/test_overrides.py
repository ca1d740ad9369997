from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.errors import UserError
from cocomix.params import load
from flows.overrides import nested, override
from tests.flows.test_preset import shipped

KEYS = st.text("abc", min_size=1, max_size=3)


@pytest.fixture
def params(folder: Path) -> Path:
    Path("params.yaml").write_bytes(shipped())
    return Path("params.yaml")


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, st.integers() | st.lists(st.integers()))))
def test_dots_in_keys_are_sections(content: dict[str, dict[str, object]]) -> None:
    flat = {f"{section}.{key}": value for section, values in content.items() for key, value in values.items()}
    assert nested(flat) == {section: values for section, values in content.items() if values}


def test_values_are_written_and_every_comment_stays(params: Path) -> None:
    before = params.read_text()
    override({"sae.k": 16, "pretrain": {"training.steps": 10}, "pretrain.methods": ["ntp"]})
    read = load()
    assert (read.sae.k, read.pretrain.training.steps, read.pretrain.methods) == (16, 10, ["ntp"])
    assert params.read_text().count("#") == before.count("#")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sae.latnts": 64}, "overrides: sae.latnts: unknown key; did you mean 'latents'"),
        ({"sae.k": "many"}, "overrides: sae.k: 'many': input should be a valid integer"),
        ({"sae": 3}, "overrides: sae: must be a section of 'key: value', not 3"),
        ({"sae.k.x": 3}, "overrides: sae.k"),
        ({"sae.k": 100_000}, "k .100000. must not exceed latents"),
        ({"$(touch here)": 1}, "unknown key"),
        ({"": 1}, "unknown key"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    params: Path, values: dict[str, object], message: str
) -> None:
    before = params.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        override(values)
    assert "\n" not in str(caught.value)
    assert params.read_bytes() == before

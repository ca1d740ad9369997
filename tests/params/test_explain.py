import pytest

from cocomix.params import ExplainParams
from cocomix.plumbing.checked import parse, read_yaml
from cocomix.plumbing.errors import UserError
from tests.shipped import SHIPPED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeller": "model"}, "labeller is model, which needs model.name: a hub id or a folder"),
        ({"labeller": "words"}, "labeller: 'words': input should be 'tokens' or 'model'"),
        ({"held_out": 9}, r"model.judged \(10\) must not exceed held_out \(9\)"),
        ({"contexts": 9}, r"model.contexts \(10\) must not exceed contexts \(9\)"),
        ({"before": 1}, "before: 1: input should be greater than or equal to 2"),
    ],
)
def test_an_atlas_that_cannot_be_is_an_error_that_names_the_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(ExplainParams, read_yaml(SHIPPED)["explain"] | changes, "params.yaml")

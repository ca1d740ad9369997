from pathlib import Path

import pytest

from cocomix.params import load
from cocomix.plumbing.errors import UserError
from tests.shipped import paper_form


def test_what_is_multiplied_by_no_gradient_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = paper_form().replace("  score: gradient ", "  score: activation ")
    path.write_text(text.replace("scope: sequence", "scope: next_token"))
    with pytest.raises(UserError, match=r"attribution: scope: next_token needs a score that is a change of the loss"):
        load(path)
    path.write_text(text.replace("sign: released", "sign: helpful"))
    with pytest.raises(UserError, match=r"attribution: sign: helpful needs a score that is a change of the loss"):
        load(path)
    path.write_text(text.replace("value: activation", "value: pre_activation"))
    with pytest.raises(UserError, match=r"attribution: value: pre_activation needs score: gradient, not activation"):
        load(path)

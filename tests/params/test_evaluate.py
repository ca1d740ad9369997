from pathlib import Path

import pytest

from tests.params.changed import refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("windows: 64 ", "windows: 1 ", "evaluate.intervention_windows: 1: input should be greater than or equal to 2"),
        ("corpora: {}", "corpora: {a: 3}", "evaluate.corpora.a: must be a section of 'key: value', not 3"),
        ("corpora: {}", "corpora: {a: {}}", "evaluate.corpora.a.paths: missing; it must be given"),
        ("corpora: {}", "corpora: {a: {path: x}}", "evaluate.corpora.a.path: unknown key; did you mean 'paths'?"),
        (
            "corpora: {}",
            "corpora: {test: {paths: [x]}}",
            "evaluate.corpora.test: 'test': allowed: a letter, then lette",
        ),
        ("  tasks: []", "  tasks: [piqa, arc_easy, piqa]", "evaluate: tasks lists a value twice: ['piqa', 'arc_easy',"),
    ],
)
def test_a_wrong_value_of_the_evaluation_is_one_line_with_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refusal(tmp_path, old, new).startswith(message)

"""What commands print of texts from elsewhere."""

import io

from rich.console import Console, RenderableType
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cocomix.explore.terminal import Stream, harmless, meanings, side_by_side, table_of, visible
from cocomix.modeling import Set
from cocomix.steering.reading import Concept, Position

COMMANDS = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9b31me\x08f\x00g"
ESCAPED = r"a\x1b]0;title\x07b\x1b[2Jc\rd\x9b31me\x08f\x00g"


def printed(*what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=300, force_terminal=False)
    console.print(*what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_control_characters_of_a_text_are_escaped_but_for_tabs_and_line_ends() -> None:
    assert harmless(COMMANDS) == ESCAPED
    assert harmless("one\n\ttwo \u00e9\u3000\U0001f600") == "one\n\ttwo \u00e9\u3000\U0001f600"


def test_white_space_of_a_token_is_seen() -> None:
    assert visible("one\n\ttwo \r\u3000") == "one\u21b5\u2192two\u00b7\\r\\u3000"


def test_no_text_from_elsewhere_commands_the_terminal() -> None:
    position = Position(1, COMMANDS, [Concept(3, 1.0, COMMANDS)], [Concept(3, 1.0, COMMANDS)], None)
    streamed = Console(file=io.StringIO(), width=300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    Stream(tokenizer, streamed).on_finalized_text(COMMANDS, stream_end=True)
    shown = [
        printed(table_of([position], 1)),
        printed(side_by_side(COMMANDS, {"original": COMMANDS})),
        printed(meanings([Set(3, 1.0)], {3: COMMANDS})),
        streamed.file.getvalue(),  # type: ignore[attr-defined]
    ]
    for each in shown:
        assert ESCAPED in each
        assert all(letter.isprintable() or letter == "\n" for letter in each)

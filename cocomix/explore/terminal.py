"""Concepts and continuations at a terminal, in colour where it is supported.

Control characters of a text are escaped: some command a terminal.
"""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerFast, TextStreamer

from cocomix.explore.edit_syntax import Written
from cocomix.modeling import Swap
from cocomix.steering.reading import Concept, Position
from cocomix.tokens.visible import with_symbols


def table_of(positions: Sequence[Position], most: int) -> Table:
    """A table with a row per token: the gain from mixing, the top predicted concepts, and the labels.

    A concept that is both predicted (mixed) and labelled is green.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, expand=True)
    for name in ("token", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    labelled = any(each.labelled is not None for each in positions)
    for name in ("predicted", "labelled") if labelled else ("predicted",):
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
    for each in positions:
        predicted = {concept.concept for concept in each.predicted}
        labels = {concept.concept for concept in each.labelled or []}
        gain = Text() if each.gain is None else Text(f"{each.gain:+.2f}", "green" if each.gain > 0 else "red")
        lists = [_listed(each.predicted[:most], labels, strengths=True)]
        if labelled:
            lists.append(_listed(each.labelled or [], predicted, strengths=False))
        table.add_row(Text(visible(each.text), "cyan"), gain, *lists)
    return table


_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def harmless(text: str) -> str:
    """A text in which control characters are escaped, but for tabs and line ends."""
    return text.translate(_CONTROLS)


def visible(text: str) -> str:
    """A token's text with visible white space."""
    return with_symbols(harmless(text))


def side_by_side(prompt: str, continuations: Mapping[str, str]) -> Table:
    """A table with a column per continuation of one prompt."""
    table = Table(header_style="bold", expand=True, show_lines=False)
    for name in continuations:
        table.add_column(name, ratio=1)
    prompt = harmless(prompt)
    table.add_row(*(Text.assemble((prompt, "dim"), harmless(each)) for each in continuations.values()))
    return table


def meanings(edits: Sequence[Written], labels: Mapping[int, str]) -> str:
    """The labels of the concepts in edits, one per line, where they have one."""
    numbers = dict.fromkeys(number for edit in edits for number in concepts_of(edit))
    return "\n".join(f"{number}  {harmless(labels[number])}" for number in numbers if labels.get(number))


def concepts_of(edit: Written) -> list[int]:
    """The concepts that an edit names."""
    return [edit.concept, edit.other] if isinstance(edit, Swap) else [edit.concept]


class Stream(TextStreamer):
    """Prints a prompt's continuation while it is generated."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, console: Console) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print the finalized text."""
        self._console.print(Text(harmless(text)), end="\n" if stream_end else "", soft_wrap=True)


def _listed(concepts: Sequence[Concept], agreed: set[int], *, strengths: bool) -> Text:
    """One line per concept."""
    lines = []
    for each in concepts:
        number = (f"{each.concept:5d}", "bold green" if each.concept in agreed else "bold")
        strength = (f" {each.strength:4.1f}" if strengths else "", "dim")
        lines.append(Text.assemble(number, strength, f"  {harmless(each.label or '')}"))
    return Text("\n").join(lines)

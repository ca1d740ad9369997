"""The one dialect of YAML that this project reads: what all its readers take alike, each value written out.

DVC reads params.yaml too, by ruamel.yaml (YAML 1.2), and notes in dvc.lock what it found; PyYAML reads YAML 1.1. The
same `010` is 10 for the one and 8 for the other. What they take differently is refused, with what to write instead, and
so are aliases: where two sections are one, whoever changes the first changes the second.
"""

import re
from typing import Any

import yaml

from cocomix.plumbing.errors import UserError

_DIGITS = "[0-9]+(?:_[0-9]+)*"
_READ = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)",
    "float": rf"[-+]?{_DIGITS}\.[0-9]*(?:[eE][-+]?[0-9]+)?|[-+]?{_DIGITS}[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""Words without quotes that are no text, by what they are: PyYAML and ruamel.yaml agree on their values."""
_NUMBERS_OF_1_2 = (
    r"[-+]?(?:0o?[0-7_]+|[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?)"
)
"""What ruamel.yaml, or YAML 1.2 itself, reads as a number and PyYAML, in part, as text."""
_OF_1_1 = [pattern for some in yaml.SafeLoader.yaml_implicit_resolvers.values() for _, pattern in some]
_AMBIGUOUS_CHARACTERS = re.compile(r"(?!\A)[\x85\u2028\u2029\ufeff]")
"""Ends of lines for YAML 1.1 alone, and the mark of byte order where no text begins."""


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not of the dialect."""


def needs_quotes(text: str) -> bool:
    """Whether text, written without quotes, would not be of the dialect, or no text.

    What would be no YAML at all, such as `a: b`, is not asked for here: whoever writes YAML knows.
    """
    return _is_ambiguous(text) or bool(re.search(r"[:\x85\u2028\u2029\ufeff]", text))


def _is_ambiguous(word: str) -> bool:
    """Whether a word without quotes is no text for some reader of YAML, and not the same for all."""
    if any(re.fullmatch(pattern, word) for pattern in _READ.values()):
        return False
    return bool(re.fullmatch(_NUMBERS_OF_1_2, word)) or any(pattern.match(word) for pattern in _OF_1_1)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def compose_document(self) -> yaml.Node | None:
        start: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if start.version or start.tags:
            raise _Refused(problem="a line that begins with %: leave it out", problem_mark=start.start_mark)
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if problem := _problem(event, within_brackets=bool(getattr(parent, "flow_style", False))):
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if (found := self.construct_object(key)) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(found)
        return super().construct_mapping(node, deep)


for _tag, _pattern in _READ.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)  # type: ignore[arg-type]


def _problem(event: Any, within_brackets: bool) -> str | None:
    """Why a value, of which this is the beginning, is not of the dialect."""
    if isinstance(event, yaml.AliasEvent):
        return f"*{event.anchor} repeats a value of another place; write it out"
    if event.anchor is not None:
        return f"&{event.anchor} names a value to repeat it; write it out where it belongs"
    if event.tag is not None:
        return f"the tag {event.tag}: a value has no tag here; write it plainly"
    text, place = event.start_mark.buffer, event.start_mark.pointer
    if isinstance(event, yaml.MappingStartEvent) and event.flow_style and text[place] == "?":
        return "not all readers of YAML take a ? within []; leave it out"
    if not isinstance(event, yaml.ScalarEvent):
        return None
    if any("\ud800" <= each <= "\udfff" for each in event.value):
        return "half a character, which is no text"
    if not event.implicit[0]:  # quoted
        return None
    if _is_ambiguous(event.value):
        return f"{event.value}: readers of YAML take it differently; {_remedy(event.value)}"
    if within_brackets and (":" in event.value or re.match(r":[\],}]", text[place - 1 : place + 1])):
        return "not all readers of YAML take a colon within [] or {} that no space follows; add one, or write in quotes"
    return None


def _remedy(word: str) -> str:
    if word[0].isalpha():
        return f"write true or false, or '{word}' in quotes for the word"
    if re.match("[0-9]{4}-", word) or word in ("<<", "="):
        return f"write '{word}' in quotes"
    return f"write a number in decimal digits without a leading 0, or '{word}' in quotes for the text"


def load_yaml(content: bytes | str, source: str, *, lines: bool = True) -> Any:
    """What a YAML text holds.

    Args:
        source: where it is from, for the error.
        lines: whether it has lines, unlike a command line: the error then says which.

    Raises:
        UserError: when it is no YAML, gives a key twice, or is not of the dialect.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        if found := _AMBIGUOUS_CHARACTERS.search(text):
            line, escape = text.count("\n", 0, found.start()) + 1, ascii(found[0])[1:-1]
            where = f"{source}:{line}" if lines else source
            raise UserError(f'{where}: {escape}: readers of YAML take it differently; write "{escape}" in quotes')
        return yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark and lines else source
        kind = "" if isinstance(error, _Refused) else "not valid YAML: "
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: {kind}{problem}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, endless nesting
        raise UserError(f"{source}: not valid YAML: {error}") from None

"""The subset of YAML that this project reads: all its readers agree on it, and each value is written out.

DVC also reads params.yaml, with ruamel.yaml (YAML 1.2), and records the values in dvc.lock; PyYAML reads YAML 1.1. So
`010` is 10 for DVC and 8 for PyYAML. A value on which they differ is refused, with the correct spelling. Aliases are
refused too: they join two sections, so a change of the first also changes the second.
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
"""Unquoted words that are not text, by type: PyYAML and ruamel.yaml agree on their values."""
_NUMBERS_OF_1_2 = (
    r"[-+]?(?:0o?[0-7_]+|[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?)"
)
"""Words that ruamel.yaml or the YAML 1.2 specification reads as a number; PyYAML reads some of them as text."""
_OF_1_1 = [pattern for some in yaml.SafeLoader.yaml_implicit_resolvers.values() for _, pattern in some]
_AMBIGUOUS_CHARACTERS = re.compile(r"(?!\A)[\x85\u2028\u2029\ufeff]")
"""Characters that only YAML 1.1 treats as line ends, and byte order marks that are not at the start."""


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is outside the dialect."""


def needs_quotes(text: str) -> bool:
    """Whether unquoted `text` would be outside the dialect, or would not be read as text.

    It does not look for text that breaks the syntax of YAML, such as `a: b`: who writes YAML knows.
    """
    return _is_ambiguous(text) or bool(re.search(r"[:\x85\u2028\u2029\ufeff]", text))


def _is_ambiguous(word: str) -> bool:
    """Whether some reader of YAML takes an unquoted word for something other than text, and readers differ."""
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
    """Why a value, which begins with this event, is outside the dialect; None: it is inside."""
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
    """Parse a YAML text.

    Args:
        source: where the text is from, for the error.
        lines: whether the error names the line; a command line has none.

    Raises:
        UserError: when it is not valid YAML, repeats a key, or is outside the dialect.
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
    except (ValueError, RecursionError) as error:  # a number with too many digits, endless nesting
        raise UserError(f"{source}: not valid YAML: {error}") from None

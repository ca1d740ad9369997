"""Extract English prose from docstrings and READMEs: reStructuredText, Markdown, numpydoc, Google style or epytext.

Lines that look like code, tables, parameter lists or headings are dropped; the remaining text must read like sentences.
This is a filter, not a parser: it prefers losing a paragraph to keeping a parameter list.
"""

import html
import inspect
import re
from collections.abc import Iterator

_DROPPED_SECTIONS = re.compile(
    r"(call |extra |keyword |keyword[- ]only |other |positional |optional |class |data |input |output )?"
    r"(args?|arguments?|params?|parameters?|attributes|kwargs|keywords|options|fields|members|methods|properties"
    r"|returns?|yields?|receives|raises?|throws|except(ion)?s?|warns|errors|examples?|example usage|usage( examples?)?"
    r"|see[- ]?also|references?|shapes?|inputs?|outputs?|todos?|side effects|variables|functions|classes"
    r"|licen[sc]e|copyright|authors?|contributors|acknowledge?ments|credits|citation|citing.*"
    r"|installation|install|installing|change ?log|changes|release notes|history|(table of )?contents|links)",
    re.IGNORECASE,
)
_ADMONITION = re.compile(r"\.\. (note|warning|tip|important|caution|attention|hint|danger)::\s*", re.IGNORECASE)
_GOOGLE_SECTION = re.compile(r"([A-Z][\w -]{2,30}?)\s*(?:\([^)]*\))?\s*::?")
_FIELD = re.compile(r"[:@][A-Za-z][^:]*:(?!`)")
# `x : int`, `x (int): The x`, `- **x**: The x`, `*args, **kwargs: ...`, `x -- the x`
_PARAMETER = re.compile(
    r"(?:[-*+]\s+)?[`*\"']{0,3}[a-z_*][\w.*\[\]-]*[`*\"']{0,3}(?:\s*,\s*[`*]{0,3}[\w.]+[`*]{0,3})*"
    r"\s*(?:[\[(][^)]*[)\]])?\s*(?::|--|\u2013|\u2014| - )(?:\s|$)"
)
_BULLET = re.compile(r"(?:[-*+\u2022]|\d{1,2}[.)]|\(\w\))\s+")
_RULE = re.compile(r"([-=~^\"'`#*+.:_])\1{2,}")
_TABLE = re.compile(r"[|+]|[-=]{2,}\s+[-=]{2,}")

_INLINE = [
    (re.compile(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|\[[#*]?\w*\]_|</?[a-zA-Z][^<>]*>"), ""),  # images, notes, tags
    (re.compile(r"\[([^\[\]]+)\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),  # Markdown links
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # reStructuredText links
    (re.compile(r"`[~!](?:[\w.]+\.)?"), "`"),  # `~package.module.name` is shown as its name
    (re.compile(r"(?::[\w+-]+){1,2}:`([^`]+)`"), r"\1"),  # roles
    (re.compile(r"\[`([^`]+)`\]"), r"\1"),  # the references of Hugging Face's docstrings
    (re.compile(r"``([^`]+)``|`([^`]+)`_{0,2}"), r"\1\2"),
    (re.compile(r"\b[A-Z]\{([^{}]*)\}"), r"\1"),  # epytext
    (re.compile(r"(?<![\w*])\*{1,3}([^\s*](?:[^*]*[^\s*])?)\*{1,3}(?![\w*])"), r"\1"),  # emphasis
    (re.compile(r"::(?=\s|$)"), ":"),
]
_MARKUP = re.compile(r"[`*<\[{&]|::")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
_ADDRESS = re.compile(r"://|www\.|\S@\S")
_FULL_STOP = re.compile(r"[.!?][\"')]*$")
_OPENING = re.compile(r"[\"'(]?[A-Z]")
_WORD = re.compile(r"[\"'(\[]*[A-Za-z]+(?:['\u2019/-][A-Za-z]+)*[\"')\]]*[.,;:!?]*[\"')]*")
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\u2019-]|_")
_FUNCTION_WORD = re.compile(
    r"\b(?:the|a|an|of|to|in|is|are|and|or|for|that|this|with|it|be|as|on|by|if|not|from|which|when|you|can|will)\b",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"licensed under|permission is hereby|all rights reserved|warrant(?:y|ies)\b.{0,40}\b(?:of|or)|apache license"
    r"|redistribution and use|copyright|\(c\) (?:19|20)\d\d|in no event shall|(?:mit|bsd|gpl)[ -]licen[sc]e",
    re.IGNORECASE,
)
_NOT_LOWERCASE = re.compile(r"(?<=\s)\S*[A-Z0-9_.]\S*(?<![.,;:!?])")

_MIN_WORDS = 6


def paragraphs(text: str) -> list[str]:
    """The paragraphs of `text` that are English prose, each on one line, without markup."""
    return [paragraph for block in _blocks(text) if (paragraph := _sentences(block))]


def fold(paragraph: str) -> str:
    """A key that paragraphs from one template share: names and numbers are replaced, case and punctuation removed."""
    return re.sub(r"\W+", " ", _NOT_LOWERCASE.sub("X", paragraph)).lower()


def _blocks(text: str) -> Iterator[str]:
    """Yield runs of lines that are no code, table, parameter list or heading, each joined to one line."""
    block: list[str] = []
    block_indent = 0
    fence = ""  # the closing fence inside a fenced block
    hidden_above: int | None = None  # lines indented deeper than this are part of a dropped element
    hidden_to_blank = False
    hidden_section = False

    def flush() -> str:
        joined = " ".join(block)
        block.clear()
        return joined

    lines = inspect.cleandoc(text).splitlines()
    for line, next_line in zip(lines, [*lines[1:], ""], strict=False):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if fence:
            fence = "" if stripped.startswith(fence) else fence
            continue
        if not stripped:
            hidden_to_blank = False
            if block and block[-1].endswith("::"):
                hidden_above = block_indent
            yield flush()
            continue
        if hidden_above is not None and indent > hidden_above:
            continue
        hidden_above = None
        if stripped.startswith(("```", "~~~")):
            fence = stripped[:3]
            yield flush()
            continue
        heading = stripped.lstrip("# ") if stripped.startswith("#") else stripped
        if heading != stripped or (_RULE.fullmatch(next_line.strip()) and len(stripped) < 80):
            hidden_section = _DROPPED_SECTIONS.fullmatch(heading.rstrip(": ")) is not None
            yield flush()
            continue
        if hidden_to_blank or hidden_section or _RULE.fullmatch(stripped):
            continue
        if stripped.startswith((">>>", "$ ", "@")) or _TABLE.match(stripped) or _FIELD.match(stripped):
            yield flush()
            hidden_to_blank, hidden_above = True, indent
            continue
        if stripped.startswith(".. "):
            yield flush()
            admonition = _ADMONITION.match(stripped)
            if not admonition:
                hidden_above = indent
                continue
            stripped = stripped[admonition.end() :]
        section = _GOOGLE_SECTION.fullmatch(stripped)
        if _PARAMETER.match(stripped) or (section and _DROPPED_SECTIONS.fullmatch(section[1])):
            yield flush()
            hidden_above = indent
            continue
        bullet = _BULLET.match(stripped)
        if bullet or (block and indent != block_indent):
            yield flush()
        if bullet:
            stripped = stripped[bullet.end() :]
            indent += bullet.end()
        if not block:
            block_indent = indent
        block.append(stripped)
    yield flush()


def _sentences(block: str) -> str:
    """The sentences of a block, or "" if it is not prose."""
    if not _FUNCTION_WORD.search(block):
        return ""
    if _MARKUP.search(block):
        for pattern, replacement in _INLINE:
            block = pattern.sub(replacement, block)
        block = html.unescape(block)
    block = " ".join(block.split())
    kept = [each for each in _SENTENCE_END.split(block) if _FULL_STOP.search(each) and not _ADDRESS.search(each)]
    paragraph = " ".join(kept)
    return paragraph if _is_prose(paragraph) else ""


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    return (
        len(words) >= _MIN_WORDS
        and _OPENING.match(paragraph) is not None
        and sum(_WORD.fullmatch(word) is not None for word in words) >= 0.8 * len(words)
        and len(_SYMBOL.findall(paragraph)) <= 0.02 * len(paragraph)
        and len(_FUNCTION_WORD.findall(paragraph)) >= 0.12 * len(words)
        and _BOILERPLATE.search(paragraph) is None
    )

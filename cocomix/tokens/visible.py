"""Which tokens a reader can see, and what stands for white space."""

_SYMBOLS = {" ": "\N{MIDDLE DOT}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW}"}


def is_visible(token: str) -> bool:
    """Whether the text of a token is more than white space."""
    return bool(token.strip())


def with_symbols(text: str) -> str:
    """A text with symbols in place of spaces, tabs and line ends, and other white space escaped."""
    return "".join(_SYMBOLS.get(each) or (repr(each)[1:-1] if each.isspace() else each) for each in text)

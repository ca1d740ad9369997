"""Which tokens a reader can see."""


def is_visible(token: str) -> bool:
    """Whether the text of a token is more than white space."""
    return bool(token.strip())

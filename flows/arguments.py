"""Types of arguments on the command line."""

from argparse import ArgumentTypeError

from cocomix.plumbing.checked import whole_number


def count(text: str) -> int:
    """Parse a number of things, from 1 to 65536.

    Raises:
        ArgumentTypeError: when it is out of this range.
        ValueError: when `text` is no whole number.
    """
    if not 1 <= (number := whole_number(text)) <= 2**16:
        raise ArgumentTypeError(f"{text}: must be from 1 to {2**16}")
    return number

"""Input, output and errors of a program, whatever it was started with."""

import os
import sys


def mend_streams() -> None:
    """Let a program print: where a stream was closed into nowhere, and what its encoding has not as an escape.

    Without a stream of that number, the next file that is opened takes its place: of an artifact, in which libraries
    would then write their warnings.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as the program runs)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

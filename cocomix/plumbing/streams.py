"""Standard streams that a program can rely on, however it was started."""

import os
import sys


def mend_streams() -> None:
    """Open closed standard streams on the null device, and escape characters that the encoding lacks.

    With a standard descriptor closed, the next opened file would get its number: a file of an artifact, into which
    libraries would then print their warnings.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the program ends)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

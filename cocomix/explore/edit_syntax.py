"""The syntax of edits, which needs no quotes in a shell.

412x4       strength of concept 412 times 4 (`Scale`)       412x-2.5
77=0        without concept 77 (`Ablate`)
9=2.5       concept 9 with strength 2.5 everywhere (`Set`)
3~8         concepts 3 and 8 exchanged (`Swap`)
9=2.5@4:    any of these at positions from 4 on             @4:9  @:9  @4
"""

import re
from dataclasses import replace

import torch

from cocomix.modeling.concept_edits import Ablate, Scale, Set, Swap
from cocomix.plumbing.errors import UserError

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
WHOLE = r"\d{1,9}"  # int() raises an error for thousands of digits
EDIT = re.compile(
    rf"(?P<concept>{WHOLE})(?:x(?P<factor>{NUMBER})|=(?P<strength>{NUMBER})|~(?P<other>{WHOLE}))"
    rf"(?:@(?P<start>{WHOLE})?(?P<range>:(?P<stop>{WHOLE})?)?)?",
    re.ASCII,
)


Written = Scale | Ablate | Set | Swap
"""An edit that has a syntax."""


def parse_edit(text: str, num_concepts: int, *, before_selection: bool = False) -> Written:
    """Parse an edit.

    Args:
        num_concepts: number of concepts of the model.
        before_selection: whether `Scale` and `Ablate` act before the top-k selection.

    Raises:
        UserError: when the text is no edit, or names a concept that does not exist.
    """
    found = EDIT.fullmatch(text)
    if not found or text.endswith(("@", "@:")):
        raise UserError(
            f"edit {text!r}: write 412x4 (times 4), 77=0 (without), 9=2.5 (strength), 3~8 (exchange), each for some "
            "positions with @4: or @4:9 or @4"
        )
    for number in filter(None, (found["concept"], found["other"])):
        if int(number) >= num_concepts:
            raise UserError(f"edit {text!r}: no concept {number}; the model has 0 to {num_concepts - 1}")
    concept, start = int(found["concept"]), int(found["start"] or 0)
    stop = int(found["stop"]) if found["stop"] else None if found["range"] or not found["start"] else start + 1
    edit: Written
    number = float(found["factor"] or found["strength"] or 0)
    if abs(number) > torch.finfo(torch.float32).max:
        raise UserError(f"edit {text!r}: {number:g} is beyond what 32 bits hold, 3.4e38")
    if found["factor"]:
        edit = Scale(concept, number, before_selection)
    elif found["other"]:
        edit = Swap(concept, int(found["other"]))
    elif number == 0:
        edit = Ablate(concept, before_selection)
    else:
        edit = Set(concept, number)
    return replace(edit, start=start, stop=stop)

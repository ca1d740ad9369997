"""What all sections have in common."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

LONGEST = 4096
"""Most characters of a text parameter, as of a path on Linux."""


class Section(BaseModel):
    """Base of all sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Reject text that cannot be written to a file or name one: JSON and command lines can hold lone surrogates."""
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and (len(each) > LONGEST or re.search("[\0\ud800-\udfff]", each)):
                raise ValueError(f"must be text of at most {LONGEST} characters, without null and half characters")
        return value

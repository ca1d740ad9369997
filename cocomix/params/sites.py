"""The sites of activations in the base model."""

import re
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import AfterValidator

Location = Literal["resid_post", "resid_mid", "attn_out", "mlp_out"]


class Site(NamedTuple):
    """A site of activations in the base model, written `resid_post_2`."""

    location: Location
    """resid_post: the residual stream after the block; resid_mid: between its attention and its MLP; attn_out,
    mlp_out: the outputs of the two."""
    layer: int
    """The number of the block, from 1: `resid_post_2` is `hidden_states[2]`."""

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Parse the name of a site.

        Raises:
            ValueError: when `name` is not a site.
        """
        location, _, layer = name.rpartition("_")
        if location not in get_args(Location) or not re.fullmatch("[1-9][0-9]{0,8}", layer):
            raise ValueError(f"allowed: {', '.join(get_args(Location))}, each with _ and the number of a block from 1")
        return cls(location, int(layer))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.location}_{self.layer}"


def _is_site(name: str) -> str:
    Site.parse(name)
    return name


SiteName = Annotated[str, AfterValidator(_is_site)]
"""`<location>_<block>`: see `Site`."""

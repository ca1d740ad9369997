"""What concepts mean: the atlas of a dictionary.

The name here is the public interface, which docs/concepts.md describes; ours import from the modules.
"""

from cocomix.explain.atlas import Atlas

__all__ = ["Atlas"]

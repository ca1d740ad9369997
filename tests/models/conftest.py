"""The variants of tests/modeling."""

from tests.modeling.conftest import variant

__all__ = ["variant"]

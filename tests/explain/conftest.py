from tests.attribution.conftest import setting

__all__ = ["setting"]

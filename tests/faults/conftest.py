"""The finished smoke project, which tests/stages share too: it is run once."""

from pathlib import Path

import pytest

from tests.stages.conftest import finished
from tests.stages.project import Project

__all__ = ["finished"]


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to break."""
    return finished.copy(tmp_path / "project")

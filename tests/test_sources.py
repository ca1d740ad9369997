from pathlib import Path

import pytest

from cocomix import sources as module
from cocomix.sources import digest_of_sources, sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project: a stage that uses two modules, one inside a function, and the plumbing."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    files = {
        "stages/thing.py": "import numpy\nfrom cocomix.sae import train\nfrom cocomix.progress import say\nx = 1\n",
        "cocomix/sae/__init__.py": "",
        "cocomix/sae/train.py": "def f():\n    import cocomix.deep.inner as inner\n    return inner\n",
        "cocomix/deep/near.py": "",
        "cocomix/deep/nearer.py": "",
        "cocomix/deep/__init__.py": "y = 1\n",
        "cocomix/deep/inner.py": "from cocomix.sae import train\nfrom .near import y\nfrom . import nearer\n",
        "cocomix/progress.py": "import cocomix.unused\n",
        "cocomix/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_sources_are_what_is_imported_however_deep_without_the_plumbing(tree: Path) -> None:
    entry = tree / "stages/thing.py"
    assert {str(each.relative_to(tree)) for each in sources(entry).values()} == {
        "stages/thing.py",
        "cocomix/sae/__init__.py",
        "cocomix/sae/train.py",
        "cocomix/deep/__init__.py",
        "cocomix/deep/inner.py",
        "cocomix/deep/near.py",
        "cocomix/deep/nearer.py",
    }


@pytest.mark.parametrize(
    ("name", "text", "same"),
    [
        ("stages/thing.py", "\n\n# A comment.\n", True),
        ("cocomix/progress.py", "z = 1\n", True),
        ("cocomix/unused.py", "z = 1\n", True),
        ("stages/thing.py", "z = 1\n", False),
        ("cocomix/deep/inner.py", "z = 1\n", False),
        ("cocomix/deep/__init__.py", "z = 1\n", False),
    ],
)
def test_the_digest_changes_with_the_code_and_not_with_comments_or_plumbing(
    tree: Path, name: str, text: str, same: bool
) -> None:
    entry = tree / "stages/thing.py"
    before = digest_of_sources(entry)
    with (tree / name).open("a") as file:
        file.write(text)
    assert (digest_of_sources(entry) == before) == same

import importlib
import os
import sys
from pathlib import Path

import pytest

from cocomix.plumbing import sources as module
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.sources import check, digest_of_sources, hold, sources, states
from cocomix.plumbing.workers import in_order
from tests.conftest import write_files

DOCUMENTED = """\"\"\"A module.\"\"\"

UNIT = "nats"
\"\"\"Of all losses.\"\"\"


class Loss:
    \"\"\"A class.\"\"\"

    name: str = "loss"
    \"\"\"A field.\"\"\"

    def shown(self, value: float) -> str:
        \"\"\"A method.\"\"\"
        return f"{self.name}: {value} " + UNIT


async def wait() -> None:
    \"\"\"Alone in its function.\"\"\"
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project: a stage that uses two modules, one inside a function, and the plumbing."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    files = {
        "stages/thing.py": (
            "import numpy\nfrom cocomix.sae import train\nfrom cocomix.plumbing.progress import say\nx = 1\n"
        ),
        "cocomix/sae/__init__.py": '"""Autoencoders."""\n',
        "cocomix/sae/train.py": "def f():\n    import cocomix.deep.inner as inner\n    return inner\n",
        "cocomix/deep/near.py": "y = 1\n",
        "cocomix/deep/nearer.py": DOCUMENTED,
        "cocomix/deep/__init__.py": "y = 1\n",
        "cocomix/deep/inner.py": "from cocomix.sae import train\nfrom .near import y\nfrom . import nearer\n",
        "cocomix/plumbing/progress.py": "import cocomix.unused\n",
        "cocomix/unused.py": "",
    }
    write_files(tmp_path, files)
    return tmp_path


def test_sources_are_what_is_imported_however_deep_without_the_plumbing(tree: Path) -> None:
    entry = tree / "stages/thing.py"
    assert {str(each.relative_to(tree)) for each in sources(entry).values()} == {
        "stages/thing.py",
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
        ("cocomix/plumbing/progress.py", "z = 1\n", True),
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A module.", "The module."),
        ("Of all losses.", "Of each loss."),
        ("A class.", "The class."),
        ("A field.", "The field."),
        ("A method.", "The method."),
        ("Alone in its function.", "Reworded."),
        ('    """A method."""\n', ""),
        ("class Loss:", "# What is minimised.\nclass Loss:  # in nats"),
        ("value: float) -> str", "\n        value: float,\n    ) -> str"),
        ('"loss"', "('loss')"),
    ],
)
def test_reworded_docstrings_comments_and_layout_leave_the_digest(tree: Path, old: str, new: str) -> None:
    entry, path = tree / "stages/thing.py", tree / "cocomix/deep/nearer.py"
    before = digest_of_sources(entry)
    assert DOCUMENTED.count(old) == 1
    path.write_text(DOCUMENTED.replace(old, new))
    assert digest_of_sources(entry) == before


@pytest.mark.parametrize(
    ("old", "new"), [('"nats"', '"bits"'), ('"loss"', '"Loss"'), ("{value} ", "{value}  "), ("float", '"float"')]
)
def test_a_text_that_is_a_value_changes_the_digest(tree: Path, old: str, new: str) -> None:
    entry, path = tree / "stages/thing.py", tree / "cocomix/deep/nearer.py"
    before = digest_of_sources(entry)
    assert DOCUMENTED.count(old) == 1
    path.write_text(DOCUMENTED.replace(old, new))
    assert digest_of_sources(entry) != before


def test_a_package_is_a_source_once_its_init_has_code(tree: Path) -> None:
    entry, path = tree / "stages/thing.py", tree / "cocomix/sae/__init__.py"
    before = digest_of_sources(entry)
    path.write_text('"""Sparse autoencoders."""\n\n# Nothing else.\n')
    assert "cocomix.sae" not in sources(entry)
    assert digest_of_sources(entry) == before
    path.write_text('"""Sparse autoencoders."""\n\nx = 1\n')
    assert sources(entry)["cocomix.sae"] == path
    assert digest_of_sources(entry) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cocomix.plumbing.valve", False),
        ("cocomix.plumbing.deep.valve", False),
        ("cocomix.training.tensorboard", False),
        ("stages.reads", False),
        ("cocomix.sae.plumbing", True),
        ("cocomix.plumbing_of_water", True),
        ("cocomix.sae.tensorboard", True),
        ("cocomix.reads", True),
    ],
)
def test_plumbing_is_left_out_and_its_namesakes_elsewhere_are_not(tree: Path, name: str, counts: bool) -> None:
    path = tree / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n")
    (tree / "stages/thing.py").write_text(f"import {name}\n")
    assert (name in sources(tree / "stages/thing.py")) == counts


@pytest.fixture
def held(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small project, whose stage has started."""
    monkeypatch.setattr(module, "HELD", {})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    hold(tree / "stages/thing.py", states())
    return tree


def test_the_digest_of_a_stage_at_work_is_that_of_the_code_it_runs(held: Path) -> None:
    entry = held / "stages/thing.py"
    before = digest_of_sources(entry)
    (held / "cocomix/sae/train.py").write_text("import cocomix.unused\n")
    assert digest_of_sources(entry) == before
    with pytest.raises(UserError, match=r"^cocomix/sae/train.py changed while this stage was at work; run it again"):
        check()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cocomix/plumbing/progress.py", "z = 1\n"),
        ("cocomix/unused.py", "z = 1\n"),
        ("cocomix/deep/inner.py", "\n# Why.\n"),
    ],
)
def test_other_code_and_comments_may_change_while_a_stage_works(held: Path, name: str, text: str) -> None:
    with (held / name).open("a") as file:
        file.write(text)
    check()


@pytest.mark.parametrize("content", [None, b"x = (\n", b"\0"])
def test_code_that_is_gone_or_half_written_has_changed(held: Path, content: bytes | None) -> None:
    path = held / "cocomix/deep/inner.py"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cocomix/deep/inner.py changed"):
        check()


def test_a_module_that_has_changed_is_not_imported_late(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = held / "cocomix/sae/train.py"
    package.write_text("y = 2\n")
    monkeypatch.delitem(sys.modules, "cocomix.sae.train", raising=False)
    with pytest.raises(UserError, match=r"cocomix/sae/train.py changed"):
        importlib.import_module("cocomix.sae.train")


def test_code_that_was_written_while_a_stage_started_is_not_taken_for_what_it_runs(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD", {})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before, path = states(), tree / "cocomix/deep/near.py"
    times = path.stat()
    path.write_text("y = 3\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=r"^cocomix/deep/near.py changed while this stage started; run it again$"):
        hold(tree / "stages/thing.py", before)


def test_a_worker_that_starts_with_other_code_refuses(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "2")
    assert list(in_order(abs, [-1, -2])) == [1, 2]
    (held / "cocomix/deep/inner.py").write_text("y = 3\n")
    with pytest.raises(UserError, match=r"inner.py changed while this stage was at work"):
        list(in_order(abs, [-1, -2]))

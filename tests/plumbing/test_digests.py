import json
import os
from pathlib import Path
from typing import Any

import pytest

from cocomix.plumbing import digests
from cocomix.plumbing.digests import KEPT, digest_of_files, digest_of_path
from cocomix.plumbing.errors import UserError


@pytest.fixture
def settled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files that count as written long ago."""
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))
    for name in ("model/config.json", "model/deep/weights", "model/.git/index"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    return Path("model")


def test_a_digest_follows_names_and_content_and_not_times(settled: Path) -> None:
    first = digest_of_path(settled)
    os.utime(settled / "deep/weights", (0, 0))
    (settled / ".git/index").write_text("other")
    assert digest_of_path(settled) == first
    settled.rename("moved")
    assert digest_of_path(Path("moved")) == first
    Path("moved/deep/weights").rename("moved/deep/other")
    assert digest_of_path(Path("moved")) != first
    assert digest_of_path(Path("nothing")) is None


def test_what_was_not_written_since_is_not_read_again(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest_of_path(settled)
    read = list[str]()
    opened = Path.open

    def noted(path: Path, *arguments: Any, **named: Any) -> Any:
        read.append(path.name)
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", noted)
    assert digest_of_path(settled) == first
    assert "weights" not in read
    (settled / "config.json").write_text("changed")
    assert digest_of_path(settled) != first
    assert "config.json" in read
    assert "weights" not in read


def test_a_file_of_the_same_size_and_time_is_read_again(settled: Path) -> None:
    path = settled / "config.json"
    first, times = digest_of_path(settled), path.stat()
    path.write_text("M" + path.read_text()[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest_of_path(settled) != first


def test_what_was_written_just_now_is_not_kept(folder: Path) -> None:
    Path("new").write_text("x")
    digest_of_path(Path("new"))
    assert json.loads(KEPT.read_bytes()) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[1]", b'{"a": 3}', b"\xff"])
def test_a_damaged_list_of_digests_is_made_anew(settled: Path, content: bytes) -> None:
    first = digest_of_path(settled)
    KEPT.write_bytes(content)
    assert digest_of_path(settled) == first
    assert len(json.loads(KEPT.read_bytes())) == 2


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^gone.txt: cannot be read: No such file or directory$"):
        digest_of_files([Path("gone.txt")])

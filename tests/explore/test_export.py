"""The command that exports the atlas; the exported page in a browser: test_page.py."""

from pathlib import Path

import pytest

from cocomix.explain.atlas import Atlas
from cocomix.explore.export import main, parts_of


def test_the_command_prints_the_sizes_of_the_page_and_of_its_parts_also_of_small_ones(
    atlas: Atlas, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("atlas.html")
    monkeypatch.setattr("sys.argv", ["export", str(out), "--atlas", str(atlas.path), "--steering", "nowhere"])
    main()
    (part,) = parts_of(out).iterdir()
    page_size, part_size = (round(each.stat().st_size / 1000) for each in (out, part))
    assert min(page_size, part_size) > 0
    assert capsys.readouterr().out == f"atlas.html: {page_size} kB\natlas_parts: {part_size} kB\n"

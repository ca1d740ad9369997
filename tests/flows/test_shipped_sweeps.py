"""Every file of `sweeps/` is valid under the preset that its head names."""

import re
from pathlib import Path

import pytest

from flows import preset
from flows.settings import settings, tasks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_all_settings_of_a_file_are_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = re.search(r"^# python -m flows\.preset (\S+)$", file.read_text(), re.MULTILINE)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.chdir(tmp_path)
    if named:
        preset.switch(named.group(1))
    found = settings(file, [])
    assert len(tasks(found, ["cocomix"], [0])) == len(found)
    assert len({str(each.values) for each in found}) == len(found)

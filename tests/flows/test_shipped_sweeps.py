"""Every file of `sweeps/` is valid under the preset that its head names."""

import copy
import re
from pathlib import Path

import pytest

from cocomix.params import Params
from cocomix.plumbing.checked import merge, parse, read_yaml
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
    found, params = settings(file, []), read_yaml(Path("params.yaml"))
    assert len(tasks(found[:1], ["cocomix"], [0])) == 1
    for each in found[1:]:  # as `tasks`, without the comments of params.yaml, which take most of its time
        content = copy.deepcopy(params)
        merge(content, each.values)
        merge(content, {"pretrain": {"methods": ["cocomix"], "seeds": [0]}})
        parse(Params, content, each.name)
    assert len({str(each.values) for each in found}) == len(found)

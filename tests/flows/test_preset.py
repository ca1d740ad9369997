import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocomix.errors import UserError
from cocomix.params import load
from flows.preset import merged, switch
from tests.flows.conftest import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def shipped() -> bytes:
    """params.yaml as it is committed: a person may have changed the file."""
    command = ["git", "-C", str(ROOT), "show", "HEAD:params.yaml"]
    shown = subprocess.run(command, capture_output=True, check=False)
    return shown.stdout if shown.returncode == 0 else (ROOT / "params.yaml").read_bytes()


@pytest.fixture
def params(folder: Path) -> Path:
    """A project of parameters and presets only."""
    shutil.copytree(ROOT / "presets", "presets")
    Path("params.yaml").write_bytes(shipped())
    return folder / "params.yaml"


def keys(content: dict[str, object], before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths of all values."""
    return {
        path
        for key, value in content.items()
        for path in (keys(value, (*before, key)) if isinstance(value, dict) else {(*before, key)})
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_valid_parameters_and_keeps_every_comment(params: Path, name: str) -> None:
    before = params.read_text()
    switch(name)
    load()
    assert params.read_text().count("#") == before.count("#")
    assert params.read_text().count("\n") == before.count("\n")


@pytest.mark.parametrize("name", PRESETS)
def test_default_goes_back_to_the_shipped_bytes(params: Path, name: str) -> None:
    before = params.read_bytes()
    switch(name)
    switch("default")
    assert params.read_bytes() == before


@pytest.mark.parametrize("name", PRESETS)
def test_default_names_every_key_that_a_preset_sets(name: str) -> None:
    default = yaml.safe_load((ROOT / "presets" / "default.yaml").read_text())
    preset = yaml.safe_load((ROOT / "presets" / f"{name}.yaml").read_text())
    assert keys(preset) <= keys(default)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(1e-5, 1e-1))
def test_what_no_preset_sets_stays_as_it_is(params: Path, seed: int, rate: float) -> None:
    own = shipped().decode().replace("  seed: 0\n  checkpoint", f"  seed: {seed}\n  checkpoint")
    own = own.replace("  learning_rate: 1.0e-3", f"  learning_rate: {rate!r}")
    params.write_text(own)
    switch("smoke")
    assert (load().sae.seed, load().sae.learning_rate) == (seed, rate)
    switch("default")
    assert (load().sae.seed, load().sae.learning_rate) == (seed, rate)


def test_an_unknown_preset_is_refused_with_a_suggestion(params: Path) -> None:
    with pytest.raises(UserError, match="smoky: no such preset in presets; did you mean 'smoke'"):
        switch("smoky")


def test_an_unknown_key_is_refused_and_nothing_is_written(params: Path) -> None:
    before = params.read_bytes()
    Path("presets/mine.yaml").write_text("sae: {latnts: 64}\n")
    with pytest.raises(UserError, match=r"presets/mine\.yaml: sae\.latnts: unknown key; did you mean 'latents'"):
        switch("mine")
    assert params.read_bytes() == before


def test_values_that_contradict_each_other_are_refused(params: Path) -> None:
    Path("presets/mine.yaml").write_text("sae: {k: 5000}\n")
    with pytest.raises(UserError, match=r"k \(5000\) must not exceed latents"):
        merged(params, Path("presets/mine.yaml"))

"""Text that would do harm in a shell, as a path, or as lines of its own, where people and files give names and values.

It stays text, or it is refused in one line: no command runs, no file is written elsewhere, no output is forged.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from cocomix.params import load
from cocomix.plumbing.errors import UserError
from flows import pipeline
from flows.overrides import assignments, override
from flows.plan import plan
from flows.preset import switch
from flows.settings import settings, tasks
from tests.faults.made import MARK
from tests.stages.project import Project
from tests.stages.test_sweep import changes, results, state

ROOT = Path(__file__).parents[2]
COMMANDS = [
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"; touch {MARK} #",
    f"'; touch {MARK}; '",
    f'" && touch {MARK} && "',
    f"-o ProxyCommand=touch {MARK}",
    f"!!python/object/apply:os.system ['touch {MARK}']",
    "${pretrain.methods} ${item.method} ${oc.env:HOME} {{ 7 * 7 }} %(x)s {x}",
]
PATHS = [f"../../{MARK}", f"/tmp/{MARK}", "~/.profile", "a/../../..", "."]
LINES = ["a\nerror: forged", "a\rforged", "\x1b[2Kforged", "a\u2028forged", "\u202eforged", "\0", "\ud800"]
HOSTILE = [*COMMANDS, *PATHS, *LINES]
SOME = [COMMANDS[0], COMMANDS[-1], PATHS[0], LINES[0], LINES[-1]]


@pytest.fixture(autouse=True)
def _project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project of parameters and presets only, two folders deep: nothing else may be there afterwards."""
    monkeypatch.chdir(_made(folder / "a/project"))
    (Path("presets")).mkdir()
    for each in ("params.yaml", "presets/default.yaml"):
        Path(each).write_bytes((ROOT / each).read_bytes())


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def there() -> set[str]:
    return {str(each) for each in Path("../..").rglob("*")}


def refusal(work: Callable[[], object]) -> str:
    """The line that `work` is refused with; it must have written nothing."""
    before, params = there(), Path("params.yaml").read_bytes()
    with pytest.raises(UserError) as error:
        work()
    assert str(error.value).isprintable()
    assert (there(), Path("params.yaml").read_bytes()) == (before, params)
    return str(error.value)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_parameter_of_free_text_stays_that_text(text: str) -> None:
    before = there()
    if text == "\ud800":
        assert refusal(lambda: override({"report.title": text})) == "overrides: holds text that is not Unicode"
        return
    if "\0" in text:
        assert "must be text of at most 4096 characters, without null" in refusal(
            lambda: override({"report.title": text})
        )
        return
    override({"report.title": text})
    assert load().report.title == text
    assert yaml.safe_load(Path("params.yaml").read_bytes())["report"]["title"] == text
    assert there() == before


@pytest.mark.parametrize("text", SOME, ids=ascii)
@pytest.mark.parametrize("key", ["{}", "sae.{}", "sae.also.{}.k", "evaluate.corpora.{}.paths"])
def test_no_key_nor_name_of_a_section_is_any_text(key: str, text: str) -> None:
    assert refusal(lambda: override({key.format(text): 1})).startswith("overrides: ")


@pytest.mark.parametrize("text", SOME, ids=ascii)
@pytest.mark.parametrize("key", ["sae.k", "sae.site", "pretrain.methods", "pretrain.seeds", "corpus.source"])
def test_no_parameter_with_a_form_is_any_text(key: str, text: str) -> None:
    value = [text] if key.startswith("pretrain.") else text
    assert refusal(lambda: override({key: value})).startswith("overrides: ")


@pytest.mark.parametrize("text", SOME, ids=ascii)
def test_assignments_of_the_command_line_are_plain_yaml(text: str) -> None:
    before = there()
    with suppress(UserError):
        override(assignments(pipeline.command_line(["--set", f"report.title={text}"]).set))
        load()
    assert there() == before


@pytest.mark.parametrize("text", [*COMMANDS, *LINES[:-2]], ids=ascii)
def test_a_preset_may_be_called_anything_and_hold_any_text(text: str) -> None:
    with Path(f"presets/{text.replace('/', '|')}.yaml").open("w") as file:
        YAML().dump({"report": {"title": text}}, file)
    before = there()
    switch(text.replace("/", "|"))
    assert load().report.title == text
    assert there() == before


@pytest.mark.parametrize("text", SOME, ids=ascii)
def test_what_is_no_name_of_a_preset_is_refused(text: str) -> None:
    Path("../mine.yaml").write_text("report: {title: mine}\n")
    for name in (text, "../mine", "../../a/mine", f"{text}/../../mine"):
        assert "no such preset" in refusal(lambda name=name: switch(name))
        assert "no such preset" in refusal(lambda name=name: plan(preset=name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n", "presets/mine.yaml: holds a list"),
        (b"{", "presets/mine.yaml:1: not valid YAML"),
        (b"", "presets/mine.yaml: is empty"),
        (b"\xff\xfe", "presets/mine.yaml: not UTF-8"),
        (f"!!python/object/apply:os.system ['touch {MARK}']\n".encode(), "presets/mine.yaml:1: the tag tag:yaml.org"),
        (b"report: {title: !!python/name:os.system}\n", "presets/mine.yaml:1: not valid YAML"),
        (b"sae: {k: 1, k: 2}\n", "presets/mine.yaml:1: not valid YAML: the key 'k' is given twice"),
    ],
)
@pytest.mark.parametrize("file", ["presets/mine.yaml", "params.yaml"])
def test_a_file_that_holds_no_parameters_is_refused(file: str, content: bytes, message: str) -> None:
    Path("presets/mine.yaml").write_text("report: {title: mine}\n")
    Path(file).write_bytes(content)
    message = message.replace("presets/mine.yaml", file)
    assert message in refusal(lambda: switch("mine"))
    if file == "params.yaml":
        assert message in refusal(lambda: override({"sae.k": 16}))
        assert message in refusal(lambda: tasks(settings(None, [])))
        assert message in refusal(plan)


@pytest.mark.parametrize("text", SOME, ids=ascii)
def test_settings_of_a_sweep_are_called_by_printable_text_and_hold_parameters_only(text: str) -> None:
    file = Path("mine.yaml")
    if text not in LINES:
        file.write_text(yaml.safe_dump({text: {"report": {"title": text}}}))
        before = there()
        (task, *_) = tasks(settings(file, []), ["ntp"], [0])
        assert (task.setting.name, YAML(typ="safe").load(task.content)["report"]["title"]) == (text, text)
        assert there() == before
    else:
        file.write_text(yaml.safe_dump({text: {}}))
        refusal(lambda: settings(file, []))
    file.write_text(yaml.safe_dump({"mine": {"sae": {"k": text}}, "other": {"sae": {text: 1}}}))
    for index in (0, 1):
        refusal(lambda index=index: tasks([settings(file, [])[index]]))


@pytest.mark.parametrize("text", SOME, ids=ascii)
def test_no_axis_of_a_grid_is_any_text(text: str) -> None:
    for axis in (text, f"{text}=1", f"sae.k={text}", f"sae.{text}=1,2"):
        refusal(lambda axis=axis: tasks(settings(None, [axis])))


def test_what_is_no_name_of_a_sweep_is_refused() -> None:
    before = there()
    command = [sys.executable, "-m", "flows.sweep", "../../mine"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert there() - {"../../a/project/.prefect"} == before  # Prefect's own folder


@pytest.mark.slow
def test_a_sweep_of_hostile_settings_runs_and_records_them_as_text(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "here/project")
    before = state(project)
    names = [*COMMANDS, *PATHS]
    (project.path / "mine.yaml").write_text(
        yaml.safe_dump({each: {"report": {"title": each}} for each in names}, sort_keys=False)
    )
    outside = set(tmp_path.rglob("*")) - set(project.path.rglob("*"))
    printed = project.run(sys.executable, "-m", "flows.sweep", "mine.yaml", "--methods", "ntp", "--seeds", "0")
    assert [each["setting"] for each in results(project, "mine")] == names
    assert all(any(line.startswith(f"{each} ") for line in printed.splitlines()) for each in names)
    assert not changes(project, before)
    assert set(tmp_path.rglob("*")) - set(project.path.rglob("*")) == outside
    assert not list(project.path.rglob(MARK))

"""What README.md, CONTRIBUTING.md and docs/ mention is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/concepts.md",
    "docs/glossary.md",
    "docs/methods.md",
    "docs/operations.md",
    "docs/steering.md",
    "docs/text.md",
]
MADE_LATER = {
    ".prefect",
    ".venv-datatrove",
    ".dvc",
    "artifacts",
    "metrics",
    "plots",
    "runtime.yaml",
    "dvc.lock",
    ".venv",
}
"""Made by a run, so not in a fresh clone."""


def text(page: str) -> str:
    return (ROOT / page).read_text()


def stages() -> set[str]:
    return set(yaml.safe_load(text("dvc.yaml"))["stages"])


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_folder_in_code_marks_exists(page: str) -> None:
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text(page))
    paths = [each for each in named if "/" in each or re.search(r"\.(py|md|yaml|toml|txt|json|lock)$", each)]
    assert paths
    files = [each for each in paths if each.split("/")[0] not in MADE_LATER and each != "manifest.json"]
    assert [each for each in files if not (ROOT / each).exists() and not (ROOT / "tests" / each).exists()] == []


def test_every_path_of_the_file_tree_exists() -> None:
    tree = text("README.md").partition("## Files")[2].split("```")[1]
    folder = ""
    for line in filter(None, tree.splitlines()):
        names = re.split(r",? ", line.strip().partition("  ")[0])
        for name in names:
            path = name if not line.startswith(" ") else folder + name
            assert path.split("/")[0] in MADE_LATER or (ROOT / path).exists(), path
        if not line.startswith(" "):
            folder = names[0]


def test_the_file_tree_names_every_folder_of_the_library() -> None:
    tree = text("README.md").partition("## Files")[2]
    folders = {each.parent.name for each in (ROOT / "cocomix").glob("*/__init__.py")}
    assert [each for each in folders if f"  {each}/ " not in tree] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_is_there(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", text(page))
    files = [each for each in targets if not each.startswith("https://")]
    assert [each for each in files if not (ROOT / page).parent.joinpath(each).is_file()] == []


def test_every_picture_of_the_readme_says_what_it_shows_and_is_small() -> None:
    pictures = re.findall(r"!\[([^\]]*)\]\((.*?)\)", text("README.md"))
    assert pictures
    for said, file in pictures:
        assert len(said) > 30
        assert (ROOT / file).stat().st_size <= 150_000


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", text(page), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_is_run_exists(page: str) -> None:
    for module in re.findall(r"python -m ((?:flows|stages|benchmarks)\.\w+)", text(page)):
        assert find_spec(module), module


def test_the_picture_shows_the_stages_of_dvc_yaml_in_order() -> None:
    picture = text("README.md").partition("## The pipeline")[2].split("```")[1]
    shown = " ".join(line for line in picture.splitlines() if "──>" in line).split("──>")
    assert [each.strip() for each in shown] == list(yaml.safe_load(text("dvc.yaml"))["stages"])


def test_the_table_of_names_has_every_stage_with_its_folders() -> None:
    table = text("README.md").partition("A stage has one name in")[2]
    lines = [line.strip("|").split("|") for line in re.findall(r"^\| `.*$", table, re.MULTILINE)]
    rows = [[re.findall(r"`(\w+)`", cell) for cell in cells[start : start + 3]] for cells in lines for start in (0, 4)]
    named = {stage[0]: (library, artifacts) for stage, library, artifacts in rows if stage}
    defined = yaml.safe_load(text("dvc.yaml"))["stages"]
    assert named.keys() == defined.keys()
    for name, (library, artifacts) in named.items():
        assert library
        assert [folder for folder in library if not (ROOT / "cocomix" / folder).is_dir()] == []
        outs = [Path(out) for out in defined[name]["outs"] if isinstance(out, str)]
        assert artifacts == [out.parts[1] for out in outs if out.parts[0] == "artifacts"], name


def test_the_stages_and_presets_in_commands_exist() -> None:
    readme = text("README.md")
    assert set(re.findall(r"flows\.pipeline ([a-z]+)", readme)) <= stages()
    for name in re.findall(r"flows\.preset ([a-z0-9-]+)", readme):
        assert (ROOT / "presets" / f"{name}.yaml").exists()


def test_every_runtime_knob_in_the_readme_exists() -> None:
    from cocomix.plumbing.runtime import Runtime

    knobs = {each.lower() for each in re.findall(r"COCOMIX_([A-Z_]+)=", text("README.md"))}
    assert knobs
    assert knobs <= set(Runtime.model_fields)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in text("README.md")
    assert text(".ci/run").strip().endswith("make test")

import ast
import hashlib
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.corpus import installed
from cocomix.corpus.installed import DocumentationFile, find_documentation, read_installed_docs, split_groups
from cocomix.corpus.store import Document
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime

ALL = ("corpus.megabytes", math.inf)
PROSE = "The optimizer keeps a running average of the gradient, which it uses to scale the step."
OTHER = "It is safe to call this function from several threads at the same time, as long as they wait."

MODULE = f'''"""{PROSE}"""
LIMIT = 1
"""{PROSE.replace("gradient", "limit")}"""
if LIMIT:
    class A:
        """{PROSE.replace("gradient", "class")}"""
        async def f(self):
            """{PROSE.replace("gradient", "method")}"""
            try:
                pass
            except ValueError:
                def g():
                    """{PROSE.replace("gradient", "inner function")}"""
add_docstr(f, """
    {PROSE.replace("gradient", "C function")}
""")
raise ValueError("{PROSE.replace("gradient", "error")}")
'''


def test_all_docstrings_are_found_in_the_order_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(MODULE)
    subjects = ["gradient", "limit", "class", "method", "inner function", "C function"]
    found = installed._paragraphs([DocumentationFile("a", "a.py", path)])
    assert [each.text for each in found] == [PROSE.replace("gradient", subject) for subject in subjects]


def test_every_docstring_that_ast_knows_is_found() -> None:
    source = Path(ast.__file__).read_text()
    found = set(installed._documentation(ast.parse(source)))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            assert docstring is None or docstring in found


def test_files_that_cannot_be_read_as_python_are_passed_over(tmp_path: Path) -> None:
    broken = {"syntax.py": b'"""x"""\nprint 1', "null.py": b'"""x"""\0', "latin.py": b'"""\xff"""', "gone.py": None}
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    origins = [DocumentationFile("a", name, tmp_path / name) for name in broken]
    assert list(installed._paragraphs(origins)) == []


@pytest.mark.parametrize(
    "description",
    ["\n\n# Title\n\n{}\n\n```\ncode\n```\n", "\nDescription: Title\n        \n        {}\n"],
    ids=["body", "field"],
)
def test_the_description_of_a_distribution_is_read_as_utf_8(tmp_path: Path, description: str) -> None:
    path, prose = tmp_path / "METADATA", PROSE.replace("optimizer", "naïve optimizer")
    path.write_text(f"Metadata-Version: 2.1\nName: a{description.format(prose)}", encoding="utf-8")
    assert list(installed._paragraphs([DocumentationFile("a", "a", path)])) == [Document("a", "a", prose)]


@pytest.fixture
def origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[DocumentationFile]:
    found = []
    for number in range(100):
        path = tmp_path / f"m{number}.py"
        own = f"The paragraph about {'abcdefghij'[number // 10]}{'klmnopqrst'[number % 10]} is not in another module."
        path.write_text(
            f'"""{PROSE.replace("optimizer", f"Optim{number}")}\n\n{own}\n\n{OTHER if number > 97 else ""}"""'
        )
        found.append(DocumentationFile(f"package{number // 10}", f"m{number}.py", path))
    monkeypatch.setattr(installed, "find_documentation", lambda: found)
    return found


def test_paragraphs_of_one_template_are_kept_once(
    origins: list[DocumentationFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    found = read_installed_docs(tmp_path / "parts", ALL)
    first, last = found.groups["package0"][0], found.groups["package9"][0]
    assert (first.source, last.source) == ("m0.py", "m98.py")
    assert first.text.startswith("The Optim0 keeps")
    assert "keeps" not in last.text
    assert found.repeated == 100
    assert found.short == 98


def test_processes_do_not_change_what_is_read(
    origins: list[DocumentationFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    alone = read_installed_docs(tmp_path / "alone", ALL)
    runtime.cache_clear()
    monkeypatch.setenv("COCOMIX_WORKERS", "2")
    assert read_installed_docs(tmp_path / "shared", ALL) == alone


def test_reading_stops_when_the_text_asked_for_is_there(
    origins: list[DocumentationFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")

    key = "corpus.installed_docs.megabytes"

    def size(limit: float) -> int:
        found = read_installed_docs(tmp_path / "parts", (key, limit))  # what was read for one limit serves any
        return sum(len(each.text) for documents in found.groups.values() for each in documents)

    everything = size(float("inf"))
    assert 0 < size(everything / 2) <= everything / 2
    with pytest.raises(UserError, match=r"^corpus\.installed_docs\.megabytes: the first document, m\d+\.py, alone has"):
        size(10)


def test_origins_are_real_modules_without_tests_and_without_this_project() -> None:
    origins = find_documentation()
    sources = [origin.source for origin in origins]
    assert origins == find_documentation()
    assert len({origin.group for origin in origins[:500]}) > 40, "the first files are not a sample of all packages"
    assert len(set(sources)) == len(sources)
    assert {"python/ast.py", "numpy/_globals.py", "numpy (description)"} <= set(sources)
    assert not any(origin.group == "cocomix" or "/tests/" in origin.source for origin in origins)


def test_tools_beside_the_pipeline_are_not_read() -> None:
    found = installed.needed().keys()
    assert {"numpy", "prefect", "torch", "dvc-data"} <= found
    assert found.isdisjoint({"cocomix", "pip", "pytest", "ruff"})


def test_versions_follow_a_package_that_is_replaced_while_a_stage_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = installed.versions()
    assert installed.versions() == before
    (tmp_path / "numpy-99.0.dist-info").mkdir()
    (tmp_path / "numpy-99.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed.versions() != before


def test_a_project_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_OURS", "cocomix-elsewhere")
    with pytest.raises(UserError, match="needs this project to be installed"):
        installed.needed()


groups = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 100), min_size=80, max_size=120)


@settings(max_examples=25)
@given(groups)
def test_groups_fill_the_splits_about_as_asked(sizes: dict[str, int]) -> None:
    splits = split_groups(sizes, 0.1, 0.15)
    assert splits.keys() == sizes.keys()
    total = sum(sizes.values())
    for split, share in (("validation", 0.1), ("test", 0.15)):
        taken = [sizes[group] for group in sizes if splits[group] == split]
        assert abs(sum(taken) - share * total) <= share * total / 4
        assert max(taken) <= share * total / 2


@settings(max_examples=25)
@given(groups, st.text("xyz", min_size=5, max_size=8), st.integers(1, 100))
def test_one_more_package_moves_few_others(sizes: dict[str, int], name: str, size: int) -> None:
    before = split_groups(sizes, 0.1, 0.1)
    after = split_groups(sizes | {name: size}, 0.1, 0.1)
    moved = [group for group in sizes if before[group] != after[group]]
    assert sum(sizes[group] for group in moved) <= 0.1 * sum(sizes.values())


def test_a_huge_package_trains() -> None:
    sizes = {f"p{number}": 10 for number in range(100)}
    for number in range(20):
        assert split_groups(sizes | {f"huge{number}": 10_000}, 0.04, 0.04)[f"huge{number}"] == "train"


def test_the_split_does_not_depend_on_the_order_of_the_groups() -> None:
    sizes = {hashlib.sha256(bytes([number])).hexdigest(): number + 1 for number in range(100)}
    assert split_groups(dict(reversed(sizes.items())), 0.1, 0.1) == split_groups(sizes, 0.1, 0.1)

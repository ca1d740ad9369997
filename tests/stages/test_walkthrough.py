"""The notebook of the docs, in a real kernel."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.stages.conftest import ROOT
from tests.stages.project import Project

NOTEBOOK = ROOT / "docs/walkthrough.ipynb"


@pytest.fixture(scope="module")
def outputs(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What all cells print, in the folder of a finished run."""
    project = finished.copy(tmp_path_factory.mktemp("walkthrough") / "project")
    for preset in (project.path / "presets").glob("*.yaml"):  # the run is finished, and its parameters stay
        if preset.stem != "default":
            preset.unlink()
    (project.path / "presets/smoke.yaml").write_text("report: {label_runs: 1}\n")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(project.path / "docs")}}, timeout=300).execute(
        env=project.environment
    )
    return "".join(
        output["text"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text" in output
    )


def test_the_notebook_goes_from_text_to_a_steered_sentence(outputs: str) -> None:
    assert "windows of 32 tokens" in outputs
    assert "gain" in outputs
    original, steered = outputs.partition("original: ")[2].partition("\n")[::2]
    assert original.startswith("'The function returns")
    assert steered.partition(": ")[2].partition("\n")[0] not in ("", original)


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")

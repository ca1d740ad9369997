"""What people ask DVC to show of a finished pipeline."""

import json
from pathlib import Path

from tests.stages.project import Project


def test_metrics_show_has_the_headline_only(finished: Project, tmp_path: Path) -> None:
    shown = json.loads(finished.copy(tmp_path / "project").dvc("metrics", "show", "--json"))
    assert shown[""]["data"].keys() == {"metrics/headline.json"}
    losses = shown[""]["data"]["metrics/headline.json"]["data"]
    assert {"base", "sae", "ntp", "cocomix"} == losses.keys()
    assert {"validation_loss", "test_loss"} <= losses["cocomix"].keys()  # DVC leaves out what is null


def test_plots_show_draws_the_learning_curves(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.dvc("plots", "show")
    page = (project.path / "dvc_plots/index.html").read_text()
    for plot in ("plots/base.csv", "plots/sae.csv", "plots/curves.csv"):
        assert plot in page
    assert '"method": "cocomix"' in page

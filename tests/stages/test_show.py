"""What people ask DVC to show of a finished pipeline."""

from pathlib import Path

from tests.stages.project import Project


def test_metrics_show_has_the_comparison(finished: Project, tmp_path: Path) -> None:
    shown = finished.copy(tmp_path / "project").dvc("metrics", "show", "--md", "metrics/compare.json")
    for column in ("methods.cocomix.corpora.validation.verdict.difference.low", "supervision.attribution.flops"):
        assert column in shown


def test_plots_show_draws_the_learning_curves(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.dvc("plots", "show")
    page = (project.path / "dvc_plots/index.html").read_text()
    for curve in ("plots/base.csv", "plots/pretrain/ntp-0.csv", "plots/pretrain/cocomix-0.csv"):
        assert curve in page

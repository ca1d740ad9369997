"""DVC's run cache: the results of earlier parameters, which DVC brings back instead of running a stage again."""

from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo


def remember(folder: Path = Path()) -> None:
    """Enter the results that dvc.lock holds into the run cache: after a run, and before one that may replace them.

    DVC enters no stage by itself that has an output outside its cache, unless the output is a metric or a plot. Ours
    have metrics/<stage>.json, which git keeps, and which are no metrics to DVC, so that `dvc metrics show` is short.

    Args:
        folder: the project's, or a copy of it.
    """
    try:
        with Repo(str(folder), _wait_for_lock=True) as repo, repo.lock:
            for stage in repo.index.stages:
                loose = [out for out in stage.outs if not out.use_cache]
                if loose and not any(out.workspace_status() for out in loose):
                    repo.stage_cache.save(stage)
    except (DvcException, OSError):
        return  # a full disk, or a dvc.yaml that cannot be read: the run itself reports it, and keeps its results

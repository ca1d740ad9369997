"""DVC's run cache: the results of earlier parameters, which DVC brings back instead of running a stage again."""

import subprocess
import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo


def remember() -> None:
    """Enter the results that dvc.lock holds into the run cache: after a run, and before one that may replace them.

    DVC enters no stage by itself that has an output outside its cache, unless the output is a metric or a plot. Ours
    have metrics/<stage>.json, which git keeps, and which are no metrics to DVC, so that `dvc metrics show` is short.
    """
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            for stage in repo.index.stages:
                loose = [out for out in stage.outs if not out.use_cache]
                if loose and not any(out.workspace_status() for out in loose):
                    repo.stage_cache.save(stage)
    except (DvcException, OSError):
        return  # a full disk, or a dvc.yaml that cannot be read: the run itself reports it, and keeps its results


def remember_copy(folder: Path) -> None:
    """As `remember`, for a copy of the project's folder.

    It takes a process of its own, because DVC enters only what lies in the working directory.
    """
    subprocess.run([sys.executable, "-m", "flows.run_cache"], cwd=folder, start_new_session=True, check=False)


if __name__ == "__main__":
    remember()

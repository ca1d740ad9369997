"""DVC's run cache: the results of earlier parameters, which DVC brings back instead of running a stage again."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from cocomix.plumbing.parent import end_with_parent


def remember() -> bool:
    """Enter the results that dvc.lock holds into the run cache: after a run, and before one that may replace them.

    DVC enters no stage by itself that has an output outside its cache, unless the output is a metric or a plot. Ours
    have metrics/<stage>.json, which git keeps, and which are no metrics to DVC, so that `dvc metrics show` is short.

    Returns:
        Whether all could be entered.
    """
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            for stage in repo.index.stages:
                loose = [out for out in stage.outs if not out.use_cache]
                if loose and not any(out.workspace_status() for out in loose):
                    repo.stage_cache.save(stage)
    except (DvcException, OSError):
        return False  # a full disk, or a dvc.yaml that cannot be read: the run itself reports it, and keeps its results
    return True


def remember_copy(folder: Path) -> bool:
    """As `remember`, for a copy of the project's folder.

    It takes a process of its own, because DVC enters only what lies in the working directory.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "flows.run_cache"],
        cwd=folder,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid()),
        check=False,
    )
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(not remember())

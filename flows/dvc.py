"""The dvc command with a lock on the project's folder: `python -m flows.dvc repro` waits until another run ends.

A flow, which holds the lock itself, starts it too; then DVC ends with the flow.
"""

import os
import signal
import sys
import time
from contextlib import nullcontext

from cocomix.plumbing.parent import end_with_parent

# Before the imports, which take seconds. Stages ask the kernel to end with DVC, so a killed flow ends all of them.
if flow := os.environ.get("FLOW_PID"):
    end_with_parent(int(flow))

from dvc.cli import main

from flows.run_cache import remember
from flows.workspace import alone, dvc_at_work, repair_locks, to_stderr


def _wait_for_others() -> None:
    """Wait for a `dvc repro` started by hand; DVC would exit beside it and advise to delete its list of locks."""
    said = False
    while other := dvc_at_work():
        if not said:
            to_stderr(f"another DVC is at work in this folder ({other}): waiting for it to end")
        said = True
        time.sleep(0.2)


if __name__ == "__main__":
    with nullcontext() if flow else alone(wait=True):
        if flow:
            repair_locks()
        else:
            _wait_for_others()
            remember()
        # SIGINT is the signal that DVC handles. A flow stops its stage by it, but a background process of a script
        # inherits it as ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        status = main(sys.argv[1:])
        if not flow:
            remember()
        sys.exit(status)

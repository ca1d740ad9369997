"""The dvc command, as the only run in the project's folder: `python -m flows.dvc repro` waits for another one to end.

A flow starts it too, which holds the folder already; DVC then does not outlive the flow.
"""

import os
import signal
import sys
import time
from contextlib import nullcontext

from cocomix.plumbing.parent import end_with_parent

# Before what takes seconds to import. Stages ask the kernel the same about DVC: a killed flow takes everything along.
if flow := os.environ.get("FLOW_PID"):
    end_with_parent(int(flow))

from dvc.cli import main

from flows.workspace import alone, drop_torn_locks, dvc_at_work, to_stderr


def _wait_for_others() -> None:
    """DVC itself ends at once beside a `dvc repro` that somebody has typed, and advises to delete its list of locks."""
    said = False
    while other := dvc_at_work():
        if not said:
            to_stderr(f"another DVC is at work in this folder ({other}): waiting for it to end")
        said = True
        time.sleep(0.2)


if __name__ == "__main__":
    with nullcontext() if flow else alone(wait=True):
        if flow:
            drop_torn_locks()
        else:
            _wait_for_others()
        # DVC knows what to do by SIGINT. A flow stops its stage by it, and what runs in the background of a script
        # inherits it as ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(main(sys.argv[1:]))

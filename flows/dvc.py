"""The dvc command, in a process that does not outlive the one that started it."""

import os
import signal
import sys

from dvc.cli import main

from cocomix.parent import end_with_parent
from flows.workspace import drop_torn_locks

if __name__ == "__main__":
    # A flow stops its stage by SIGINT, which whatever runs in the background of a script inherits as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Stages ask the kernel the same about DVC: a killed flow takes everything along.
    end_with_parent(int(os.environ["FLOW_PID"]))
    drop_torn_locks()
    sys.exit(main(sys.argv[1:]))

"""Prefect: runs the stages of dvc.yaml, watched. Knows no tensor."""

import os
import sys
from pathlib import Path

from flows import signals
from flows.loopback import LOOPBACK, ask_directly

if sys.argv[0] == "-m":  # Python is still looking for the program, which is one of these
    signals.end_at_once()
    if Path("params.yaml").exists():  # in the project's folder, where Prefect may write
        # A server started here must not depend on what other projects, or other versions, have left in ~/.prefect.
        os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").absolute()))
    from cocomix.plumbing.streams import mend_streams

    mend_streams()
from cocomix.plumbing.distributed import stand_alone

# Left over in a shell, torchrun's variables would make a stage wait for others.
stand_alone()
# Prefect reads this switch from the environment only; the others are in prefect.toml.
os.environ.setdefault("DO_NOT_TRACK", "1")
ask_directly(*LOOPBACK)

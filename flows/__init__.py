"""Prefect flows that run the stages of dvc.yaml and show their progress; nothing here handles tensors."""

import os
import sys
from pathlib import Path

from cocomix.plumbing.loopback import LOOPBACK, ask_directly
from flows import signals

if sys.argv[0] == "-m":  # one of these programs is starting
    signals.end_at_once()
    if Path("params.yaml").exists():  # in the project's folder, where Prefect may write
        # A server started here must not depend on what other projects or other versions have left in ~/.prefect.
        os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").absolute()))
    from cocomix.plumbing.streams import mend_streams

    mend_streams()
from cocomix.plumbing.distributed import stand_alone

# torchrun's variables, left over in a shell, would make a stage wait for other processes.
stand_alone()
# Prefect reads this switch only from the environment; its other settings are in prefect.toml.
os.environ.setdefault("DO_NOT_TRACK", "1")
ask_directly(*LOOPBACK)

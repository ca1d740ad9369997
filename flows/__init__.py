"""Prefect: runs the stages of dvc.yaml, watched. Knows no tensor."""

import os

from cocomix.distributed import stand_alone

# Left over in a shell, torchrun's variables would make a stage wait for others.
stand_alone()

# The one switch that Prefect reads from the environment only; the others are in prefect.toml.
os.environ.setdefault("DO_NOT_TRACK", "1")

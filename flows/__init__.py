"""Prefect: runs the stages of dvc.yaml, watched. Knows no tensor."""

import os
import sys

from cocomix.streams import mend_streams

if sys.argv[0] == "-m":  # a command is starting
    mend_streams()
# The one switch that Prefect reads from the environment only; the others are in prefect.toml.
os.environ.setdefault("DO_NOT_TRACK", "1")

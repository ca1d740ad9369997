"""Prefect: runs the stages of dvc.yaml, watched. Knows no tensor."""

import os

# The one switch that Prefect reads from the environment only; the others are in prefect.toml.
os.environ.setdefault("DO_NOT_TRACK", "1")

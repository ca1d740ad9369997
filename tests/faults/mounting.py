"""File systems that nobody else sees, and that end with the processes they were mounted for."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
READ_ONLY = "mount --bind {0} {0}; mount -o remount,bind,ro {0}"
"""Makes a folder read-only, also for root."""


def in_namespace(script: str, folder: Path, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a shell script that may mount; it ends with the first command that fails. Skips where the kernel refuses."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("needs Linux user namespaces")
    return subprocess.run([*UNSHARE, script], cwd=folder, env=environment, capture_output=True, text=True)

"""When, where and with what a stage ran: for its metrics, because artifacts contain no times and no machines."""

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cocomix.plumbing.runtime import runtime

CODE = ("cocomix", "stages", "params.yaml")
"""What `provenance` compares with the commit, untracked files included."""


def provenance() -> dict[str, str]:
    """Commit, date (UTC), machine and versions of this process, as text for people."""
    versions = {"Python": platform.python_version()} | {each: version(each) for each in ("torch", "transformers")}
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _commit() -> str:
    # A repository around the project, which does not hold it, knows nothing of its code.
    if not _git("ls-files", "--", *CODE):
        return "unknown"
    head = _git("rev-parse", "--verify", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=normal", "--", *CODE)
    return (head or "unknown") + (" and uncommitted changes" if changed else "")


def _git(*arguments: str) -> str:
    """The output; empty where git fails or is not installed."""
    try:
        return subprocess.run(["git", "--no-optional-locks", *arguments], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _machine() -> str:
    processors = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", processors.read_text()) if processors.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    cores = f"{name}, {runtime().cores} cores"
    if "torch" not in sys.modules:
        return cores
    import torch

    from cocomix.plumbing.device import device

    return f"{torch.cuda.get_device_name(device())}, {cores}" if device().type == "cuda" else cores

"""Artifacts that a run shows in Prefect in addition to states and logs.

They are only for people who watch: if the server cannot store one, the run logs a warning and continues. It does not
try again: Prefect's client would wait for a minute and more, while nobody reads the output of the stage.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from cocomix.params import FILE
from flows.overrides import flat
from flows.ui import REPORT, REPORT_URL

# The format of `cocomix.plumbing.progress`: "sae:  12% 125k/999k [00:05<00:30, 28.7k tokens/s, fvu=0.1787]".
_PROGRESS = re.compile(r"(?P<task>.*): +(?P<percent>\d+)% (?P<counts>.*)")


class StageProgress:
    """The progress artifact of one stage, created at its first line of progress."""

    SECONDS = 2.0
    """Minimum time between two updates."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._next = 0.0

    def read(self, line: str) -> None:
        """Process a line of the stage's output."""
        if not (found := _PROGRESS.fullmatch(line)) or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.SECONDS
        self._show(float(found["percent"]), f"{self._stage}: {found['task']}, {found['counts']}")

    def finish(self) -> None:
        """Mark the stage as done."""
        if self._artifact:
            self._show(100.0, f"{self._stage}: done")

    def _show(self, percent: float, text: str) -> None:
        with _if_possible():
            if self._artifact:
                update_progress_artifact(self._artifact, percent, text)
            else:
                created = create_progress_artifact(percent, _key("progress", self._stage), text)
                assert isinstance(created, UUID)
                self._artifact = created


def parameters(overrides: Mapping[str, Any], preset: str | None = None) -> None:
    """Show params.yaml as this run uses it."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
    given = "\n".join([f"preset: {preset}", *lines] if preset else lines)
    title = f"Given for this run:\n\n{_fenced(given)}\n\n" if given else ""
    with _if_possible():
        content = FILE.read_text(encoding="utf-8")
        create_markdown_artifact(title + _fenced(content), "parameters", "params.yaml of this run")


def metrics(stage: str, files: Iterable[Path]) -> None:
    """Show the metrics of a stage as a table; for the stage `report`, also its summary."""
    table = [
        {"metric": name, "value": _text(value)}
        for file in files
        if file.exists()
        for name, value in flat(json.loads(file.read_bytes())).items()
    ]
    with _if_possible():
        if table:
            create_table_artifact(table, _key("metrics", stage), f"What stage {stage} measured")
        if stage == REPORT.name and (summary := REPORT / "summary.txt").exists():
            address = os.environ.get(REPORT_URL) or (REPORT / "index.html").absolute().as_uri()
            shown = summary.read_text(encoding="utf-8")
            create_markdown_artifact(
                f"[The report]({address}) (`{REPORT / 'index.html'}`)\n\n{_fenced(shown)}",
                "report",
                "The comparison of the language models",
            )


def comparison(sweep: str, table: str) -> None:
    """Show the results of a sweep so far."""
    with _if_possible():
        create_markdown_artifact(_fenced(table), _key("sweep", sweep), f"The settings of sweep {sweep}, compared")


@contextmanager
def _if_possible() -> Iterator[None]:
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning(f"not shown in Prefect: {' '.join(str(error).split()) or type(error).__name__}")


def _fenced(text: str) -> str:
    """Wrap text in a code block, with a fence that no backticks in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _key(kind: str, stage: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"{kind}-{stage}".lower())


def _text(value: object) -> str:
    """Format a value; a long list is only counted."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)

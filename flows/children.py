"""Child processes that end with the command that started them: Prefect's server, and the runner of its deployments."""

import os
import re
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.parent import end_with_parent

START_SECONDS = 300.0
"""A new database takes half a minute on a core that many may share. A server that exits is noticed at once."""
DATABASE_SECONDS = 5.0
"""Time that another server's write to the same database may take."""
STOP_SECONDS = 40.0
"""Prefect gives a run 30 s to stop."""

_REASON = re.compile(r"^(?:[\w.]*\.)?(?:\w*(?:Error|Exception)): (.+)|(\[Errno \d+\] .+)", re.MULTILINE)
"""The reason at the end of a traceback, or in uvicorn's output."""


def start(
    command: list[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    ends_by: signal.Signals = signal.SIGKILL,
) -> "subprocess.Popen[bytes]":
    """Start a child process that does not receive the terminal's Ctrl-C; `stop` ends it in turn.

    Call it from the main thread before there are other threads: the kernel takes the end of the calling thread for the
    end of the process.

    Args:
        ends_by: the signal that the child receives if this process ends without stopping it.
    """
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid(), ends_by),
    )


def stop(child: "subprocess.Popen[bytes]", within: float = STOP_SECONDS) -> None:
    """Stop a child by SIGINT, or by SIGKILL after some time.

    Args:
        within: seconds until SIGKILL.
    """
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(within)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def start_server(command: list[str], address: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start Prefect's server, and wait until it answers. Its output goes to `server_log`.

    Args:
        command: the command that runs it.
        address: its future address, without a path.
        environment: its environment; its database is in PREFECT_HOME.

    Raises:
        UserError: when it cannot start.
    """
    home = Path(environment["PREFECT_HOME"])
    log = server_log(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise UserError(f"PREFECT_HOME: {error.filename}: {error.strerror}") from None
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in environment:
        _check_database(home / "prefect.db")
    with output:
        begin = output.tell()
        server = start(command, environment, output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and server.poll() is None:
            with suppress(OSError, HTTPException), urllib.request.urlopen(f"{address}/api/health", timeout=5):
                return server
            time.sleep(0.1)
    except BaseException:
        server.kill()
        raise
    said = log.read_bytes()[begin:].decode(errors="replace").strip()
    status = server.poll()
    server.kill()
    if status is None:
        reason = f"it has not answered for {START_SECONDS:.0f} s"
    else:
        found = [first or second for first, second in _REASON.findall(said)] or said.splitlines()
        reason = found[-1].strip() if found else f"it ended with status {status}"
    raise UserError(f"Prefect's server did not start: {reason}; see {log} (its database: {home / 'prefect.db'})")


def server_log(home: Path) -> Path:
    """The log file of a server with this PREFECT_HOME."""
    return home / "server.log"


def _check_database(file: Path) -> None:
    """Check that a database can be written: Prefect's server would wait a minute for a locked one."""
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=DATABASE_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:  # locked, read-only, or the disk is full
        raise UserError(f"{file}: Prefect's server needs this database: {error}") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file}: {error}; move it away, and Prefect's server starts a new one") from None

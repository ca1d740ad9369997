"""Processes that a command starts, and that end with it: Prefect's server, and what runs its deployments."""

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
"""A new database takes half a minute of a core that may be shared by many. A server that ends is noticed at once."""
DATABASE_SECONDS = 5.0
"""What another server's write may take that is at work on the same database."""
STOP_SECONDS = 40.0
"""Prefect itself gives a run 30 s to stop."""

_REASON = re.compile(r"^(?:[\w.]*\.)?(?:\w*(?:Error|Exception)): (.+)|(\[Errno \d+\] .+)", re.MULTILINE)
"""Of the end of a traceback, or of what uvicorn says."""


def start(
    command: list[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    ends_by: signal.Signals = signal.SIGKILL,
) -> "subprocess.Popen[bytes]":
    """A child that a Ctrl-C in the terminal does not reach: it is stopped when its turn comes.

    Call it before there are threads, and from the main thread: the kernel takes that one's end for the process's.

    Args:
        ends_by: the signal that it gets when this process ends without having stopped it.
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
    """End a child in its own way, or else by force.

    Args:
        within: seconds.
    """
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(within)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def start_server(command: list[str], address: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start Prefect's server, and wait until it answers. What it says goes to `server_log`.

    Args:
        command: that runs it.
        address: that it will answer at, without a path.
        environment: of the server; PREFECT_HOME is where its database is.

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
    """Where a server with this PREFECT_HOME says what it does."""
    return home / "server.log"


def _check_database(file: Path) -> None:
    """See that a database can be written. Prefect's server waits a minute for one that is locked."""
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=DATABASE_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:  # locked, read-only, no room
        raise UserError(f"{file}: Prefect's server needs this database: {error}") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file}: {error}; move it away, and Prefect's server starts a new one") from None

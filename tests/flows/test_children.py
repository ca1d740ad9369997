"""What cannot start says why, at once; and loopback is asked directly."""

import os
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import websockets

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.loopback import LOOPBACK, ask_directly
from flows.children import start_server
from flows.server import check_proxies
from tests.faults.mounting import READ_ONLY, in_namespace
from tests.flows.conftest import ROOT


def starting(program: str = "raise SystemExit(3)", home: Path = Path(".prefect")) -> str:
    """What is said of a server that cannot start."""
    with pytest.raises(UserError) as error:
        start_server([sys.executable, "-c", program], "http://127.0.0.1:1", os.environ | {"PREFECT_HOME": str(home)})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("ends_with", "reason"),
    [
        (
            "alembic.util.exc.CommandError: Can't locate revision identified by 'abc'",
            "Can't locate revision identified",
        ),
        ("sqlite3.OperationalError: database or disk is full", "database or disk is full"),
        ("ERROR: [Errno 98] error while attempting to bind on address", "[Errno 98] error while attempting to bind"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "[Errno 13] Permission denied: 'x'"),
        ("Killed", "Killed"),
    ],
)
def test_a_server_that_does_not_start_says_why_in_the_words_of_its_log(
    folder: Path, ends_with: str, reason: str
) -> None:
    Path(".prefect").mkdir()
    Path(".prefect/server.log").write_text("OSError: of an earlier start\n")
    said = starting(f"print({ends_with!r}); print('12:00 | ERROR | Application startup failed. Exiting.'[:0])")
    assert said.startswith(f"Prefect's server did not start: {reason}")
    assert said.endswith("; see .prefect/server.log (its database: .prefect/prefect.db)")


def test_a_server_that_says_nothing_is_said_to_have_ended(folder: Path) -> None:
    assert starting().startswith("Prefect's server did not start: it ended with status 3; see ")


def test_a_database_that_is_none_is_said_at_once(folder: Path) -> None:
    Path(".prefect").mkdir()
    Path(".prefect/prefect.db").write_bytes(b"no database" * 1000)
    assert starting() == (
        ".prefect/prefect.db: file is not a database; move it away, and Prefect's server starts a new one"
    )


def test_a_database_that_another_program_locks_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.children.DATABASE_SECONDS", 0.1)
    Path(".prefect").mkdir()
    with closing(sqlite3.connect(".prefect/prefect.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert starting() == ".prefect/prefect.db: Prefect's server needs this database: database is locked"


def test_a_home_that_is_no_folder_is_said_at_once(folder: Path) -> None:
    Path("file").touch()
    assert starting(home=Path("file/home")) == "PREFECT_HOME: file/home: Not a directory"


def test_a_home_that_is_read_only_is_said_at_once(folder: Path) -> None:
    Path(".prefect").mkdir()
    command = (
        f"{sys.executable} -c 'import os; from flows.children import start_server; start_server([], str(), os.environ)'"
    )
    run = in_namespace(
        f"{READ_ONLY.format('.prefect')}; {command}",
        folder,
        os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": ".prefect"},
    )
    assert run.stderr.endswith("UserError: PREFECT_HOME: .prefect/server.log: Read-only file system\n")


@pytest.mark.parametrize("listed", [None, "example.org, other", "*"])
def test_loopback_is_asked_without_a_proxy_and_other_hosts_as_before(
    monkeypatch: pytest.MonkeyPatch, listed: str | None
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", listed) if listed else monkeypatch.delenv("NO_PROXY")
    ask_directly(*LOOPBACK)
    ask_directly(*LOOPBACK)
    client = httpx.Client()
    direct = client._transport_for_url(httpx.URL("http://unlisted.example")) is client._transport
    assert direct == (listed == "*")
    assert (client._transport_for_url(httpx.URL("http://example.org")) is client._transport) == bool(listed)
    for host in ("127.0.0.1:4200", "localhost:4200", "[::1]:4200"):
        assert client._transport_for_url(httpx.URL(f"http://{host}/api")) is client._transport
        assert websockets.proxy.get_proxy(websockets.uri.parse_uri(f"ws://{host}/api")) is None
    assert urllib.request.proxy_bypass("127.0.0.1:4200")
    assert urllib.request.proxy_bypass("localhost:4200")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert os.environ["NO_PROXY"].count("localhost") == 1


@pytest.mark.parametrize("scheme", ["http", pytest.param("socks5", marks=pytest.mark.slow)])
def test_a_flow_asks_its_server_directly_under_proxies_that_do_not_answer(
    project: Path, server: str, scheme: str
) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"), f"{scheme}://127.0.0.1:1")
    clean = {name: text for name, text in os.environ.items() if name.lower() != "no_proxy"}
    run = subprocess.run(
        [sys.executable, "-m", "flows.pipeline", "nmber"],
        env=clean | proxies | {"PREFECT_API_URL": server},
        capture_output=True,
        text=True,
    )
    assert run.stderr.endswith("error: nmber: no such stage in dvc.yaml; did you mean 'number'?\n")


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "127.0.0.1:x"])
def test_a_proxy_of_a_kind_that_there_is_not_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.delenv("all_proxy", raising=False)
    with pytest.raises(UserError, match=r"^http_proxy, https_proxy or all_proxy: [^\n]+$"):
        check_proxies()

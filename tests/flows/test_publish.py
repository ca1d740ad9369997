import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from cocomix.plumbing.progress import progress
from flows import publish
from flows.publish import _PROGRESS, StageProgress


def test_the_lines_of_cocomix_progress_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 4, "steps") as bar:
        bar.advance(3, loss=2.5)
    (line,) = capsys.readouterr().err.splitlines()
    found = _PROGRESS.fullmatch(line)
    assert found
    assert (found["task"], found["percent"]) == ("train", "75")
    assert "3/4" in found["counts"]
    assert "loss=2.5" in found["counts"]


class Unavailable(BaseHTTPRequestHandler):
    """A server without CSRF tokens that answers each change with 503, as Prefect's does if its database is locked."""

    requests: list[str]

    def answer(self) -> None:
        """Note the request."""
        self.requests.append(f"{self.command} {self.path}")
        self.send_response(404 if self.command == "GET" else 503)
        self.end_headers()

    do_GET = do_POST = do_PATCH = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The requests to a Prefect server that is not available."""
    monkeypatch.setattr(publish, "get_run_logger", lambda: logging.getLogger("publish"))
    monkeypatch.setattr(Unavailable, "requests", [], raising=False)
    server = HTTPServer(("127.0.0.1", 0), Unavailable)
    Thread(target=server.serve_forever).start()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
        yield Unavailable.requests
    server.shutdown()
    server.server_close()


def test_a_server_that_cannot_show_progress_is_asked_once_and_does_not_stop_the_stage(
    unavailable: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    StageProgress("train").read("train:  75% 3/4 [00:05<00:01, 1.0 steps/s]")
    assert unavailable.count("POST /api/artifacts/") == 1
    assert "not shown in Prefect" in caplog.text
    assert "503" in caplog.text

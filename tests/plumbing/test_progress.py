import os
import pty
import re
import signal
import subprocess
import sys
import termios

import pytest

from cocomix.plumbing import interrupt
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import progress, say

WORK = """
from cocomix.plumbing.progress import progress, say
with progress("sae", 300, "steps", done=100) as bar:
    for step in range(200):
        bar.advance(1, loss=2.5)
        if step == 100:
            say("half way")
"""


def lines_of(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "\r" not in done.stderr
    return done.stderr.splitlines()


def test_off_a_terminal_there_are_whole_plain_lines_with_all_figures() -> None:
    lines = lines_of(COCOMIX_LOG_SECONDS="0.000001")
    assert "half way" in lines
    figures = re.compile(r"sae: +(\d+)% (\d+)/300 \[\d\d:\d\d<(\d\d:\d\d|\?), +(\?|[\d.]+) steps/s, loss=2.5\]")
    shown = [figures.fullmatch(line) for line in lines if line != "half way"]
    assert len(shown) > 100
    assert all(shown), lines
    counts = [int(match[2]) for match in shown if match]
    assert counts == sorted(counts)
    assert counts[-1] == 300


def test_off_a_terminal_a_line_comes_only_every_few_seconds() -> None:
    assert len(lines_of(COCOMIX_LOG_SECONDS="60")) == 2  # what was said, and the end


def test_other_ranks_are_silent() -> None:
    assert lines_of(COCOMIX_LOG_SECONDS="0.000001", RANK="1") == []


def test_on_a_terminal_a_said_line_stands_alone_between_redrawn_bars() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.wait() == 0
    os.close(ours)
    screen = [line.split("\r")[-1] for line in shown.decode().replace("\r\n", "\n").split("\n")]
    assert screen[0] == "half way"
    assert re.match(r"sae: 100%.*300/300", screen[1])
    assert len(screen) == 3


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux: the other end was closed
        return b""


def test_advance_raises_after_a_signal_and_the_units_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_received", signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as stop, progress("task", 3, "units") as bar:
        bar.advance(1)
    assert stop.value.exit_code == 143
    assert not isinstance(stop.value, Exception)  # a broad except must not swallow it


def test_say_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr().err == "hello\n"

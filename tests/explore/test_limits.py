"""Requests of every wrong kind: the answer is one line with a status of 4xx, in bounded memory."""

import asyncio
import http.client
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from cocomix.__main__ import main
from cocomix.explore import limits
from cocomix.explore.edit_syntax import parse_edit
from cocomix.explore.server import application
from cocomix.explore.session import Session
from cocomix.plumbing.errors import UserError
from tests.explore.serving import serving

HERE = "http://127.0.0.1"

WRONG: dict[str, list[Any]] = {
    "text": [None, 7, ["w5"], {}, "\ud800", "w5 \udfff", "", "w" * (limits.TEXT_CHARACTERS + 1), "w5 " * 40_000],
    "concept": [None, -1, 40, 2**31, 2**63, 10**400, 1.5, "nine", "٣9", []],
    "edits": [
        None,
        "9=1",
        ["9=1"] * (limits.EDITS + 1),
        ["9=" + "1" * limits.EDIT_CHARACTERS],
        ["\ud800"],
        ["1" * 99],
        ["9=1e400"],
        ["9x-1e39"],
        ["٣=1"],
        ["9=nan"],
        ["40=1"],
        ["-1=1"],
        [9],
        [["9=1"]],
    ],
    "before_selection": [None, "perhaps", 2, []],
    "base": [None, "perhaps", 2, []],
    "tokens": [None, 0, -1, 1.5, 2**31, 10**400, "many", []],
    "temperature": [None, -1, 1e-300, 1e-3, 11, 1e308, "warm", []],
    "seed": [None, -1, 2**63, 10**400, 1.5, "x", []],
}
FIELDS = {
    "/api/read": ["text"],
    "/api/strengths": ["text", "concept"],
    "/api/calls": [*WRONG.keys() - {"concept"}],
    "/api/continue": [*WRONG.keys() - {"concept"}],
}
GOOD = {"text": "w5 w9", "concept": 3, "tokens": 4}
BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a word": b'"text"',
    "an unknown key": b'{"text": "w5", "concept": 3, "texts": "w5"}',
    "no UTF-8": b'{"text": "\xff\xfe"}',
    "nested without end": b"[" * 100_000,
    "nested objects": b'{"text":' * 50_000,
    "a number of many digits": b'{"text": "w5", "tokens": ' + b"9" * 5000 + b"}",
    "not a number": b'{"text": "w5", "temperature": NaN, "concept": Infinity}',
    "too long": b'{"text": "' + b"w" * limits.BODY_BYTES + b'"}',
}
ADDRESSES = {
    **{f"/api/concepts/{each}": "GET" for each in ("-1", "40", "1.5", "nine", "9" * 5000, "%ED%A0%80", "1%00", "٣9")},
    "/api/search": "GET",
    "/api/search?text=" + "w" * (limits.SEARCH_CHARACTERS + 1): "GET",
    "/api/nothing": "GET",
    "/static/../server.py": "GET",
    "/static/%2e%2e/server.py": "GET",
    "/static/%00": "GET",
    "/api/read": "GET",
    "/api/about": "POST",
    "/": "DELETE",
}


@pytest.fixture
def client(session: Session) -> Iterator[TestClient]:
    """Errors of the server are raised: a 500 fails the test."""
    with TestClient(application(session), HERE) as client:
        yield client


def test_every_wrong_field_of_every_request_is_refused_in_one_line(client: TestClient) -> None:
    for path, fields in FIELDS.items():
        for field in fields:
            for value in WRONG[field]:
                asked = {key: each for key, each in GOOD.items() if key in fields} | {field: value}
                answer = client.post(path, content=json.dumps(asked), headers={"Content-Type": "application/json"})
                line = json.loads(answer.text.splitlines()[-1])
                # A writer refuses when its answer has begun; the calls are only shown, so they may hold any text.
                refused = 400 <= answer.status_code < 500 or path == "/api/continue"
                if path == "/api/calls" and field in ("text", "tokens") and answer.status_code == 200:
                    assert isinstance(value, (str, int)), (path, field, value)
                    continue
                assert refused, (path, field, ascii(value)[:60], answer.status_code)
                assert list(line) == ["error"], (path, field, ascii(value)[:60])
                assert line["error"].isprintable()
                assert len(line["error"]) < 400
    assert client.post("/api/read", json={"text": "w5"}).status_code == 200


def test_every_wrong_body_of_every_request_is_refused_in_one_line(client: TestClient) -> None:
    for path, (name, body) in itertools.product(FIELDS, BODIES.items()):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413, 422), name
        assert list(answer.json()) == ["error"], name
        assert (answer.status_code == 413) == (name == "too long")


def test_every_wrong_address_is_refused_in_one_line(client: TestClient) -> None:
    for path, method in ADDRESSES.items():
        answer = client.request(method, path)
        assert answer.status_code in (400, 404, 405, 422), path
        assert list(answer.json()) == ["error"], path
        assert answer.json()["error"].isprintable(), path


def test_a_body_without_an_end_is_read_no_further_than_the_limit() -> None:
    read, answered = [], []

    async def receive() -> dict[str, Any]:
        read.append(2**16)
        return {"type": "http.request", "body": bytes(2**16), "more_body": True}

    async def send(message: Any) -> None:
        answered.append(message)

    class Never(Session):
        def __init__(self) -> None: ...

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/read",
        "raw_path": b"/api/read",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "server": ("127.0.0.1", 80),
        "scheme": "http",
    }
    asyncio.run(application(Never())(scope, receive, send))
    assert answered[0]["status"] == 413
    assert sum(read) <= limits.BODY_BYTES + 2**16


def test_a_body_that_says_it_is_too_long_is_not_read(session: Session) -> None:
    with serving(session) as address:
        connection = http.client.HTTPConnection(address)
        connection.putrequest("POST", "/api/read")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(200_000_000))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert "200000000 bytes" in json.loads(answer.read())["error"]
        connection.close()


def test_more_connections_than_a_browser_opens_are_refused(session: Session) -> None:
    with serving(session) as address:
        connections = [http.client.HTTPConnection(address) for _ in range(limits.CONNECTIONS + 8)]
        statuses = []
        for each in connections:
            each.request("GET", "/api/about")
            statuses.append(each.getresponse().status)
        assert {200, 503} == set(statuses)
        for each in connections:
            each.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["concepts", "w5 \udcff"], "the text is not Unicode at character 3: a lone surrogate"),
        (["generate", "w5", "--temperature", "nan"], "--temperature nan: must be 0, or from 0.01 to 10"),
        (["generate", "w5", "--temperature", "1e-300"], "--temperature 1e-300: must be 0, or from 0.01 to 10"),
        (["generate", "w5", "--temperature", "inf"], "--temperature inf: must be 0, or from 0.01 to 10"),
        (["generate", "w5", "--edit", "9=1e39"], "edit '9=1e39': 1e+39 is beyond what 32 bits hold, 3.4e38"),
    ],
)
def test_the_commands_refuse_the_same(session: Session, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == f"error: {said}"


def test_numbers_of_an_edit_are_digits_that_python_reads() -> None:
    for text in ("9" * 5000 + "=1", "3~" + "9" * 10, "٣=1", "3=٣", "3x2@" + "1" * 10, "3x2@1:" + "1" * 10):
        with pytest.raises(UserError, match="write 412x4"):
            parse_edit(text, 40)
    for sign, strength in itertools.product(("", "-"), ("1e38", "3.4e38")):
        assert parse_edit(f"3={sign}{strength}", 40)

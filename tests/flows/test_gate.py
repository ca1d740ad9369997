"""Who may ask the servers of this machine: over HTTP and WebSockets, and from a page of another origin in Chromium."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prefect.states import Cancelling
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from cocomix.plumbing.artifact import Work
from cocomix.plumbing.gate import Gate
from flows.ui import report_pages
from tests.flows.conftest import ROOT, make_project, set_params
from tests.flows.test_reproduce import ends, wait_for_pid
from tests.flows.test_ui import PATIENCE, Ui, command_of, descendants, free_port, start, until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

Header = tuple[str, str]
SOCKET = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
ENDPOINTS = [
    ("GET", "/", ()),
    ("GET", "/v2/deployments", ()),
    ("GET", "/ui-settings", ()),
    ("GET", "/docs", ()),
    ("GET", "/openapi.json", ()),
    ("GET", "/api/health", ()),
    ("HEAD", "/api/health", ()),
    ("GET", "/api/admin/version", ()),
    ("GET", "/api/csrf-token?client=page", ()),
    ("POST", "/api/flows/", ()),
    ("POST", "/api/deployments/", ()),
    ("POST", "/api/deployments/filter", ()),
    ("POST", "/api/ui/flow_runs/history", ()),
    ("PATCH", "/api/flow_runs/00000000-0000-0000-0000-000000000000", ()),
    ("PUT", "/api/automations/00000000-0000-0000-0000-000000000000", ()),
    ("DELETE", "/api/flows/00000000-0000-0000-0000-000000000000", ()),
    ("OPTIONS", "/api/deployments/", (("Access-Control-Request-Method", "POST"),)),
    ("TRACE", "/api/health", ()),
    ("GET", "/api/events/in", SOCKET),
    ("GET", "/api/events/out", SOCKET),
    ("GET", "/api/logs/out", SOCKET),
]
"""Method, path, and headers, of Prefect's API, pages and sockets."""


def foreign(port: int) -> list[tuple[int, list[Header]]]:
    """Headers that a server at a loopback port must refuse, and by which status."""
    own = ("Host", f"127.0.0.1:{port}")
    hosts = [
        [],
        [""],
        [f"evil.example:{port}"],
        [f"EVIL.EXAMPLE:{port}"],
        [f"127.0.0.1.evil.example:{port}"],
        [f"localhost.evil.example:{port}"],
        [f"localhost.:{port}"],
        [f"127.0.0.1.:{port}"],
        [f"evil.localhost:{port}"],
        ["127.0.0.1"],
        ["localhost"],
        [f"127.0.0.1:{port + 1}"],
        [f"127.0.0.1:{port}0"],
        [f"127.0.0.1:{port}@evil.example"],
        [f"evil.example@127.0.0.1:{port}"],
        [f"0.0.0.0:{port}"],
        [f"192.0.2.1:{port}"],
        [f"[::]:{port}"],
        [f"127.0.0.1:{port}", f"evil.example:{port}"],
        [f"evil.example:{port}", f"127.0.0.1:{port}"],
    ]
    origins = [
        ["http://evil.example"],
        ["https://evil.example"],
        ["null"],
        ["NULL"],
        [""],
        ["file://"],
        [f"http://127.0.0.1:{port + 1}"],
        ["http://127.0.0.1"],
        ["http://localhost"],
        [f"http://127.0.0.1:{port}.evil.example"],
        [f"http://localhost:{port}.evil.example"],
        [f"http://localhost.:{port}"],
        [f"http://127.0.0.1:{port}@evil.example"],
        [f"chrome-extension://127.0.0.1:{port}"],
        [f"http://127.0.0.1:{port}", "http://evil.example"],
    ]
    fetches = [
        ("cross-site", "no-cors", "image"),
        ("cross-site", "no-cors", "script"),
        ("same-site", "no-cors", "empty"),
        ("cross-site", "cors", "empty"),
        ("cross-site", "navigate", "iframe"),
        ("same-site", "websocket", "empty"),
    ]
    return [
        *((421, [("Host", host) for host in each]) for each in hosts),
        *((403, [own, *(("Origin", origin) for origin in each)]) for each in origins),
        *(
            (403, [own, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)])
            for site, mode, dest in fetches
        ),
    ]


def welcome(port: int) -> list[list[Header]]:
    """Headers of the server's own pages, of programs, and of who follows a link."""
    own = ("Host", f"127.0.0.1:{port}")
    names = [f"127.0.0.1:{port}", f"localhost:{port}", f"LocalHost:{port}", f"[::1]:{port}"]
    link = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]
    return [
        *([("Host", name)] for name in names),
        *([("Host", name), ("Origin", f"http://{name}")] for name in names),
        [own, ("Origin", f"http://127.0.0.1:{port}"), ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors")],
        [own, ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
        [own, *link],
    ]


def ask(
    port: int, method: str, path: str, headers: Sequence[Header], body: bytes = b""
) -> tuple[int, http.client.HTTPMessage]:
    """Status and headers of the answer to a request with these headers and no other, not even a host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers
    finally:
        connection.close()


def check_refusals(port: int, endpoints: Sequence[tuple[str, str, Sequence[Header]]], share: int = 1) -> None:
    """Foreign requests to each endpoint are refused, and nothing permits a page to read why.

    Args:
        share: one of so many foreign headers is tried at an endpoint, and another one at the next.
    """
    for number, (method, path, more) in enumerate(endpoints):
        for status, headers in foreign(port)[number % share :: share]:
            found, answer = ask(port, method, path, [*headers, *more])
            # The server itself refuses some hosts as no HTTP, before the gate does.
            assert found in (status, 400), (method, path, headers, found)
            assert not permissions(answer), (method, path, headers)


def permissions(headers: http.client.HTTPMessage) -> list[str]:
    return [name for name in headers if name.lower().startswith("access-control")]


def test_every_endpoint_of_the_server_of_make_ui_refuses_other_hosts_and_origins(running: "Running") -> None:
    check_refusals(running.port, ENDPOINTS, share=5)
    for headers in welcome(running.port):
        for path in ("/api/admin/version", "/ui-settings"):
            status, answer = ask(running.port, "GET", path, headers)
            assert (status, permissions(answer)) == (200, []), (path, headers)
    own = [("Host", f"127.0.0.1:{running.port}")]
    assert ask(running.port, "GET", "/api/events/in", [*own, *SOCKET])[0] == 101
    # A page that got past the gate would still need a token, and what refuses it says so to nobody else.
    for token in ([], [("Prefect-Csrf-Token", "x"), ("Prefect-Csrf-Client", "x")]):
        status, answer = ask(running.port, "POST", "/api/deployments/filter", [*own, *token], b"{}")
        assert (status, permissions(answer)) == (403, [])
    status, answer = ask(running.port, "GET", "/v2/", own)
    assert answer["Content-Security-Policy"] == "frame-ancestors 'self'"
    check_refusals(running.port + 1, [("GET", "/", ()), ("HEAD", "/index.html", ()), ("POST", "/", ())])
    assert ask(running.port + 1, "GET", "/", [("Host", f"localhost:{running.port + 1}")])[0] == 200


class Running:
    """What `make ui` runs, for a small project with a report."""

    def __init__(self, port: int, process: "subprocess.Popen[str]") -> None:
        self.port, self.process = port, process

    def prefect(self) -> Ui:
        """Its API, when runs can be asked for."""
        return Ui(self.port, self.process)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("SHELL", raising=False)
        make_project()
        make_report("<title>report</title>")
        for name in ("prefect.toml", "prefect.yaml"):
            Path(name).write_text((ROOT / name).read_text().replace("[report]", "[number]"))
        port = free_port()
        process = start(port)
        try:
            until(lambda: answers(process, port) and answers(process, port + 1))
            yield Running(port, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def answers(process: "subprocess.Popen[str]", port: int) -> bool:
    assert process.poll() is None
    try:
        return ask(port, "GET", "/api/health", [("Host", f"127.0.0.1:{port}")])[0] in (200, 404)
    except OSError:
        return False


def make_report(page: str) -> None:
    with Work("report", Path("artifacts/report"), inputs={}, params={}) as work:
        with work.write("index.html") as pending:
            pending.path.write_text(page)
        work.finish({})
        work.publish()


def test_a_server_that_others_reach_answers_by_the_machines_names_and_addresses() -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])

    def status(gate: Gate, host: str, origin: str = "") -> int:
        headers = {"Host": host} | ({"Origin": origin} if origin else {})
        return TestClient(gate).get("/", headers=headers).status_code

    everywhere = Gate(app, 4200, "0.0.0.0")
    for host in ("192.0.2.7:4200", "[2001:db8::7]:4200", f"{socket.gethostname()}:4200", "localhost:4200"):
        assert status(everywhere, host) == status(everywhere, host, f"http://{host}") == 200
    for host in ("evil.example:4200", "192.0.2.7:4201", "192.0.2.7", "192.0.2.7.evil.example:4200", "[evil]:4200"):
        assert status(everywhere, host) == 421
    assert status(everywhere, "192.0.2.7:4200", "http://192.0.2.8:4200") == 403  # an address, but not this server's

    named = Gate(app, 4200, "machine.example")
    assert status(named, "Machine.Example:4200") == status(named, "127.0.0.1:4200") == 200
    assert status(named, "192.0.2.7:4200") == status(named, "machine.example") == 421

    behind_a_proxy = Gate(app, 4200, public="prefect.example")
    assert status(behind_a_proxy, "prefect.example", "https://prefect.example") == 200
    assert status(behind_a_proxy, "127.0.0.1:4200", "https://prefect.example") == 200
    assert status(behind_a_proxy, "prefect.example:4200") == 421

    assert status(Gate(app, 80), "localhost") == 200


def test_the_reports_server_has_the_reports_files_only(folder: Path) -> None:
    client = TestClient(report_pages())
    assert client.get("/").status_code == 404
    make_report("<title>report</title>")
    Path("artifacts/report/secret").symlink_to("/etc/passwd")
    Path("artifacts/report/beside.html").write_text("not the stage's")
    assert client.get("/").text == client.get("/index.html").text == "<title>report</title>"
    assert client.head("/").status_code == 200
    for path in (
        "/secret",
        "/beside.html",
        "/manifest.json",
        "/../report/index.html",
        "/%2e%2e/report/index.html",
        "/..%2f..%2fparams.yaml",
        "/%2fetc%2fpasswd",
        "//etc/passwd",
        "/index.html/",
        "/index.html%00",
        "/" + "x" * 5000,
    ):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code in (307, 404), path
        assert "root:" not in answer.text
    assert client.post("/").status_code == 405
    Path("artifacts/report/index.html").unlink()
    Path("artifacts/report/index.html").symlink_to("/etc/passwd")
    assert client.get("/").status_code == 404
    assert "root:" not in client.get("/").text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_the_server_of_a_run_is_behind_the_same_gate(project: Path) -> None:
    (project / "prefect.toml").write_bytes((ROOT / "prefect.toml").read_bytes())
    set_params(number=1, wait=60)
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT")}
    command = [sys.executable, "-m", "flows.pipeline", "wait"]
    with subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as run:
        ports: list[int] = []

        def is_up() -> bool:
            commands = map(command_of, descendants(run.pid))
            ports[:] = [int(found[1]) for each in commands if (found := re.search(r"flows.gate.* --port (\d+)", each))]
            return bool(ports) and answers(run, ports[0])

        until(is_up)
        below = descendants(run.pid)
        assert ask(ports[0], "GET", "/api/admin/version", [("Host", f"127.0.0.1:{ports[0]}")])[0] == 200
        check_refusals(ports[0], ENDPOINTS)
        run.terminate()
        run.wait(PATIENCE)
        assert all(ends(each) for each in below)


SCRIPT = [{"prefect.deployments.steps.run_shell_script": {"script": "touch x"}}]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_a_deployment_that_was_changed_runs_nothing_and_says_so(running: Running) -> None:
    prefect = running.prefect()
    client = prefect.client
    own = client.read_deployment_by_name("pipeline/manual")
    other = client.create_flow_from_name("other")
    Path("evil.py").write_text("open('x', 'w')\ndef flow(): open('x', 'w')\n")
    changes: list[dict[str, Any]] = [
        {"pull_steps": SCRIPT},
        {"pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": "/tmp"}} | SCRIPT[0]]},
        {"entrypoint": "evil.py:flow"},
        {"entrypoint": "evil.flow"},
        {"path": "/tmp"},
        {"job_variables": {"command": "touch x", "env": {"PYTHONSTARTUP": "evil.py"}}},
    ]
    for change in changes:
        _change(client, str(own.flow_id), "manual", change)
        run = prefect.run(stages=["number"])
        prefect.until_state(run, "Failed")
        message = prefect.read(run).state.message  # type: ignore[union-attr]
        assert message
        assert message.startswith(f"deployment pipeline/manual: {next(iter(change))}: not as prefect.yaml defines it")
        assert "\n" not in message
        _change(client, str(own.flow_id), "manual", {"pull_steps": [], "path": None, "job_variables": {}})
    run = client.create_flow_run_from_deployment(own.id, job_variables={"command": "touch x"}).id
    prefect.until_state(run, "Failed")
    # Hooks are looked up where runs are started, when one is cancelled.
    set_params(number=1, wait=60)
    run = prefect.run(stages=["wait"])
    stage = wait_for_pid()
    _change(client, str(own.flow_id), "manual", {"pull_steps": SCRIPT, "entrypoint": "evil.py:flow"})
    client.set_flow_run_state(run, Cancelling())
    assert ends(stage)
    prefect.until_state(run, "Cancelled")
    # A deployment that nobody serves, though of our flow's name, stays where it is.
    _change(client, str(own.flow_id), "foreign", {"pull_steps": SCRIPT})
    _change(client, str(other), "manual", {"pull_steps": SCRIPT, "entrypoint": "evil.py:flow"})
    foreign = [client.read_deployment_by_name(name).id for name in ("pipeline/foreign", "other/manual")]
    waiting = [client.create_flow_run_from_deployment(each).id for each in foreign]
    set_params(number=1, wait=0)
    _change(client, str(own.flow_id), "manual", {"pull_steps": []})
    prefect.until_state(prefect.run(stages=["number"]), "Completed")
    assert {prefect.read(each).state_name for each in waiting} <= {"Scheduled", "Late"}
    assert not Path("x").exists()
    for each in foreign:
        client.delete_deployment(each)


def _change(client: Any, flow: str, name: str, change: dict[str, Any]) -> None:
    """What `POST /api/deployments/` does from anywhere; it changes the one of this name."""
    content = {"name": name, "flow_id": flow, "entrypoint": "flows.pipeline.pipeline"} | change
    client.request("POST", "/deployments/", json=content).raise_for_status()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rebound])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield page
    context.close()


ATTACK = """async (server) => {
  const done = {};
  const attempt = async (name, act) => {
    try { done[name] = await act(); } catch (error) { done[name] = "refused"; }
  };
  const flow = (name) => JSON.stringify({ name });
  const json = { "Content-Type": "application/json" };
  const read = async (answer) => answer.ok ? "done" : "refused";
  await attempt("read", async () => read(await fetch(`${server}/api/admin/version`)));
  await attempt("token", async () => read(await fetch(`${server}/api/csrf-token?client=page`)));
  await attempt("json", async () =>
    read(await fetch(`${server}/api/flows/`, { method: "POST", headers: json, body: flow("evil-json") })));
  await attempt("text", async () =>
    read(await fetch(`${server}/api/flows/`, { method: "POST", body: flow("evil-text") })));
  await attempt("blind", async () => {
    const asked = { method: "POST", mode: "no-cors", body: new Blob([flow("evil-blind")]) };
    return read(await fetch(`${server}/api/flows/`, asked));
  });
  await attempt("beacon", async () => {
    navigator.sendBeacon(`${server}/api/flows/`, flow("evil-beacon"));
    return "refused";
  });
  await attempt("picture", () => new Promise((found, lost) => {
    const picture = new Image();
    picture.onload = () => found("done");
    picture.onerror = lost;
    picture.src = `${server}/favicon.ico`;
  }));
  await attempt("socket", () => new Promise((found, lost) => {
    const socket = new WebSocket(`${server.replace("http", "ws")}/api/events/in`);
    socket.onerror = lost;
    socket.onopen = () => {
      const event = { id: crypto.randomUUID(), occurred: new Date().toISOString(), event: "evil.event", payload: {},
                      resource: { "prefect.resource.id": "evil" }, related: [] };
      socket.send(JSON.stringify(event));
      found("done");
    };
  }));
  await attempt("frame", () => new Promise((found) => {
    const frame = document.createElement("iframe");
    frame.onload = () => found(frame.contentDocument ? "done" : "refused");
    frame.src = `${server}/`;
    document.body.append(frame);
  }));
  await attempt("form", () => new Promise((found) => {
    document.body.insertAdjacentHTML("beforeend", `<iframe name="into"></iframe>
      <form method="post" enctype="text/plain" target="into" action="${server}/api/flows/">
      <input name='{"name": "evil-form", "x": "' value='"}'></form>`);
    document.querySelector("iframe[name=into]").onload = () => found("refused");
    document.querySelector("form").submit();
  }));
  return done;
}"""


@in_chromium
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_page_of_another_origin_gets_nothing_done(running: Running, page: Page, tmp_path: Path) -> None:
    client = running.prefect().client
    (tmp_path / "index.html").write_text("<!doctype html><title>evil</title><body></body>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        # One that the browser calls by another name, and one whose name now leads to the server itself.
        page.route(f"http://evil.example:{running.port}/page", lambda route: route.fulfill(body="<body></body>"))
        attacks = [
            (f"http://127.0.0.1:{other.server_port}/", f"http://127.0.0.1:{running.port}"),
            (f"http://localhost:{other.server_port}/", f"http://localhost:{running.port}"),
            (f"http://evil.example:{other.server_port}/", f"http://127.0.0.1:{running.port}"),
            (f"http://evil.example:{running.port}/page", f"http://evil.example:{running.port}"),
        ]
        for address, server in attacks:
            page.goto(address)
            done = page.evaluate(ATTACK, server)
            # Of a page of the same origin, as a rebound one is, the browser shows also the refusal in a frame.
            shown = {"frame"} if address.startswith(server) else set()
            assert {name for name, what in done.items() if what != "refused"} <= shown, address
        other.shutdown()
    assert not [flow.name for flow in client.read_flows() if "evil" in flow.name]
    answer = client.request("POST", "/events/filter", json={"filter": {"event": {"name": ["evil.event"]}}})
    assert answer.json()["events"] == []
    assert client.read_deployment_by_name("pipeline/manual").pull_steps == []
    page.goto(f"http://evil.example:{running.port + 1}/")
    expect(page.locator("body")).to_contain_text("the Host of this request is another server")


@in_chromium
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_of_prefects_pages_list_deployments_and_start_a_run(running: Running, page: Page, version: str) -> None:
    prefect = running.prefect()
    before = len(prefect.client.read_flow_runs())
    for name in ("127.0.0.1", "localhost"):
        address = f"http://{name}:{running.port}"
        page.context.add_cookies([{"name": "prefect_ui_version", "value": version, "url": address}])
        page.goto(address)
        page.goto(f"{address}{'/v2' if version == 'v2' else ''}/deployments")
        expect(page.get_by_text("nightly").first).to_be_visible()
    page.get_by_role("link", name="stage", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Quick run").first.click()
    expect(page.get_by_text("scheduled to start").first).to_be_visible()
    runs = prefect.client.read_flow_runs()
    assert len(runs) == before + 1
    newest = max(runs, key=lambda run: run.created or run.expected_start_time)  # type: ignore[arg-type, return-value]
    prefect.until_state(newest.id, "Completed")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_others_reach_a_server_by_its_address_and_password_only(project: Path) -> None:
    for name in ("prefect.toml", "prefect.yaml"):
        Path(name).write_text((ROOT / name).read_text().replace("[report]", "[number]"))
    port, password = free_port(), "someone:secret"
    settings = {"PREFECT_SERVER_API_HOST": "0.0.0.0", "PREFECT_SERVER_API_AUTH_STRING": password}
    process = start(port, settings)
    try:
        prefect = Ui(port, process, password)
        prefect.until_state(prefect.run(stages=["number"]), "Completed")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing; it says by which address others see this machine
            address = probe.getsockname()[0]
        for host in (address, socket.gethostname()):
            url = f"http://{address}:{port}/api/admin/version"
            asked = {"Host": f"{host}:{port}"}
            assert httpx.get(url, headers=asked, trust_env=False).status_code == 401
            assert httpx.get(url, headers=asked, auth=("someone", "secret"), trust_env=False).status_code == 200
        evil = urllib.request.Request(url, headers={"Host": f"evil.example:{port}"})
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(evil)
        own = [("Host", f"127.0.0.1:{port}")]
        assert json.loads(_body(port, "/ui-settings", own))["auth"] == "BASIC"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def _body(port: int, path: str, headers: Sequence[Header]) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers))
    return urllib.request.urlopen(request).read()

"""What the page asks for, as the server answers it."""

import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyarrow.parquet as pq
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from cocomix.__main__ import main
from cocomix.explain.atlas import Atlas
from cocomix.explore.calls import Continuation
from cocomix.explore.load import load_extractor, load_labels, load_model
from cocomix.explore.server import application
from cocomix.explore.session import Session
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.as_json import plain
from cocomix.plumbing.errors import UserError
from cocomix.predictions.reader import open_predictions
from cocomix.steering.reading import concepts
from cocomix.tokens.windows import Tokens
from tests.explore.serving import serving

HERE = "http://127.0.0.1"
PROMPT = {"text": "w5 w9 w2", "tokens": 9, "temperature": 0.8, "seed": 3}
EDITS = ["9=20", "3x-2@4:", "5~6"]


@pytest.fixture
def client(session: Session) -> Iterator[TestClient]:
    with TestClient(application(session), HERE) as client:
        yield client


def streamed(client: TestClient, **asked: Any) -> str:
    lines = [json.loads(line) for line in client.post("/api/continue", json=asked).text.splitlines()]
    assert lines.pop() == {"done": True}
    return "".join(line["text"] for line in lines)


def stream_error(client: TestClient, **asked: Any) -> str:
    return json.loads(client.post("/api/continue", json=asked).text.splitlines()[-1])["error"]


def test_a_text_is_read_as_in_python(client: TestClient) -> None:
    model, tokenizer = load_model(Path("artifacts/models/cocomix-0"))
    artifacts = Path("artifacts")
    expected = concepts(model, "w5 w9 w2", tokenizer, load_extractor(artifacts, model), load_labels(artifacts, model))
    assert client.post("/api/read", json={"text": "w5 w9 w2"}).json() == json.loads(json.dumps(plain(expected)))


def test_a_concepts_strengths_are_the_models_logits_also_where_it_is_not_mixed(client: TestClient) -> None:
    model, tokenizer = load_model(Path("artifacts/models/cocomix-0"))
    logits = model.concepts(tokenizer("w5 w9 w2", return_tensors="pt").input_ids).logits[0]
    for concept in (0, 39):
        found = client.post("/api/strengths", json={"text": "w5 w9 w2", "concept": concept}).json()
        assert found == pytest.approx(logits[:, concept].tolist(), abs=1e-6)
    said = client.post("/api/strengths", json={"text": "w5", "concept": 40}).json()["error"]
    assert said == "concept 40: there are 40, from 0 to 39"


def test_a_card_and_a_search_are_those_of_the_atlas(client: TestClient, atlas: Atlas) -> None:
    card = client.get("/api/concepts/7").json()
    assert card.pop("predicted") is None
    assert card == json.loads(json.dumps(plain(atlas.concept(7))))
    found = client.get("/api/search", params={"text": "w9"}).json()
    assert [each["concept"] for each in found] == [each.concept for each in atlas.search("w9")]
    assert found
    assert client.get("/api/search", params={"text": " 12 "}).json()[0]["concept"] == 12
    assert client.get("/api/search", params={"text": "99999"}).json() == []
    assert client.get("/api/search", params={"text": "9" * 900}).json() == []
    numbers = [each["concept"] for each in client.get("/api/search", params={"text": "9"}).json()]
    assert len(numbers) == len(set(numbers))


def test_a_card_tells_what_the_model_makes_of_the_concept(steering: Path, session: Session, atlas: Atlas) -> None:
    model, _ = load_model(Path("artifacts/models/cocomix-0"))
    rows = pq.read_table(steering / "predicted.parquet").to_pylist()
    row = max(rows, key=lambda each: each["predictions"])
    with TestClient(application(session), HERE) as client:
        told = client.get(f"/api/concepts/{row['concept']}").json()["predicted"]
    assert [told[each] for each in ("positions", "predictions", "right", "labelled")] == [
        row[each] for each in ("positions", "predictions", "right", "labelled")
    ]
    assert [each["text"] for each in told["promotes"]] == [atlas.texts[each] for each in row["promotes"]]
    assert told["contexts"]
    for context in told["contexts"]:
        (marked,) = [place for place, each in enumerate(context["shown"]) if each["strength"]]
        assert context["start"] + marked == context["position"]
        ids = Tokens(Path("artifacts/tokens")).windows("validation")[context["window"]].astype(int)
        assert context["shown"][marked]["token"] == ids[context["position"]]
        z = model.concepts(torch.from_numpy(ids)[None]).logits[0, context["position"], row["concept"]]
        assert context["strength"] == pytest.approx(float(z), rel=1e-4)


def test_what_another_model_makes_of_the_concept_is_not_told(steering: Path, atlas: Atlas) -> None:
    folder = Path("artifacts/models/cocomix-0")
    assert open_predictions(steering, atlas, folder)
    assert open_predictions(steering, atlas)
    with Work("pretrain", folder, {}, {"other": 1}) as work:
        with work.write("model.safetensors") as pending:
            pending.path.touch()
        work.finish({})
        work.publish()
    assert open_predictions(steering, atlas, folder) is None
    assert open_predictions(steering, atlas, Path("artifacts/models")) is None
    assert open_predictions(Path("artifacts/nowhere"), atlas) is None
    atlas.manifest.inputs["sae"] = "another"
    assert open_predictions(steering, atlas) is None


def test_the_calls_that_are_shown_give_the_continuation_that_is_shown(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    steered = streamed(client, **PROMPT, edits=EDITS)
    original = streamed(client, **PROMPT)
    assert steered != original
    for temperature in (0.8, 0):
        asked = PROMPT | {"temperature": temperature}
        calls = client.post("/api/calls", json={**asked, "edits": EDITS}).json()
        capsys.readouterr()
        exec(calls["python"], {})
        assert capsys.readouterr().out == streamed(client, **asked, edits=EDITS) + "\n"
        main([*shlex.split(calls["shell"])[3:], "--json"])
        told = json.loads(capsys.readouterr().out)["continuations"]
        assert told == {"original": streamed(client, **asked), "steered": streamed(client, **asked, edits=EDITS)}
    spelt = PROMPT | {"text": "w5 <|endoftext|> w9"}
    exec(client.post("/api/calls", json=spelt).json()["python"], {})
    assert capsys.readouterr().out == streamed(client, **spelt) + "\n"
    plain_call = client.post("/api/calls", json=PROMPT | {"text": "-w5"}).json()["shell"]
    main([*shlex.split(plain_call)[3:-2], "--json", "--", "-w5"])
    assert json.loads(capsys.readouterr().out)["continuation"] == streamed(client, **PROMPT | {"text": "-w5"})


def test_the_base_model_is_edited_through_its_autoencoder_by_the_calls_that_are_shown_too(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = PROMPT | {"base": True}
    original, steered = streamed(client, **asked), streamed(client, **asked, edits=EDITS)
    assert original != steered
    assert original != streamed(client, **PROMPT)
    calls = client.post("/api/calls", json={**asked, "edits": EDITS}).json()
    capsys.readouterr()
    exec(calls["python"], {})
    assert capsys.readouterr().out == f"{steered}\n"
    main([*shlex.split(calls["shell"])[3:], "--json"])
    told = json.loads(capsys.readouterr().out)["continuations"]
    assert (told["base"], told["base steered"]) == (original, steered)
    calls = client.post("/api/calls", json=asked).json()
    exec(calls["python"], {})
    assert capsys.readouterr().out == f"{original}\n"
    main([*shlex.split(calls["shell"])[3:], "--json"])
    assert json.loads(capsys.readouterr().out)["continuation"] == original


def test_edits_before_the_selection_are_others(client: TestClient) -> None:
    asked = {**PROMPT, "edits": ["9x30"]}
    before = streamed(client, **asked, before_selection=True)
    assert before != streamed(client, **asked)
    assert (
        "Scale(9, 30.0, True)" in client.post("/api/calls", json={**asked, "before_selection": True}).json()["python"]
    )


def test_what_cannot_be_done_is_said_in_one_line(client: TestClient) -> None:
    def refused(path: str, **asked: Any) -> str:
        answer = client.post(path, json=asked)
        assert answer.status_code in (400, 422)
        return answer.json()["error"]

    assert "the text is empty" in refused("/api/read", text="")
    assert "reads at most 48" in refused("/api/read", text="w1 " * 49)
    assert "the base model reads at most 16" in refused("/api/read", text="w1 " * 17)
    assert "no concept 40" in refused("/api/calls", text="w1", edits=["40=1"])
    assert refused("/api/continue", text="w1", tokens=0).startswith("tokens: ")
    assert refused("/api/continue", text="w1", temperature=None).startswith("temperature: ")
    assert "3 tokens and 46 new ones; the model reads at most 48" in stream_error(client, **PROMPT | {"tokens": 46})
    assert "write 412x4" in stream_error(client, **PROMPT, edits=["many"])
    assert "3 tokens and 14 new ones; the model reads at most 16" in stream_error(
        client, **PROMPT | {"tokens": 14, "base": True}
    )
    assert "of active latents" in refused("/api/calls", text="w1", edits=["9x2"], before_selection=True, base=True)
    assert "concept 40: there are 40" in client.get("/api/concepts/40").json()["error"]


def test_an_edit_that_makes_numbers_overflow_is_an_error_and_the_server_goes_on(client: TestClient) -> None:
    assert "predictions overflow with these edits" in stream_error(client, **PROMPT, edits=["9=1e38", "8=-1e38"])
    assert streamed(client, **PROMPT)


def test_the_page_needs_neither_labels_nor_an_atlas(session: Session) -> None:
    artifacts = Path("artifacts")
    shutil.rmtree(artifacts / "concepts")
    found = Session(artifacts / "models/cocomix-0", artifacts)
    assert (found.about.labels, found.about.atlas) == (False, True)
    shutil.rmtree(artifacts / "atlas")
    with TestClient(application(Session(artifacts / "models/cocomix-0", artifacts)), HERE) as client:
        about = client.get("/api/about").json()
        assert not about["labels"]
        assert not about["atlas"]
        assert "no base model here" in stream_error(client, **PROMPT, base=True)
        positions = client.post("/api/read", json={"text": "w5 w9"}).json()
        assert positions[0]["labelled"] is None
        assert positions[0]["predicted"][0]["label"] is None
        assert client.get("/api/search", params={"text": "3"}).json()[0]["concept"] == 3
        assert client.get("/api/search", params={"text": "w3"}).json() == []
        assert "dvc repro explain" in client.get("/api/concepts/3").json()["error"]


def test_an_atlas_of_another_pipeline_is_refused(session: Session) -> None:
    shutil.rmtree("artifacts/atlas")
    with Work("explain", Path("artifacts/atlas"), {}, {"other": 1}) as work:
        with work.write("concepts.parquet") as pending:
            pending.path.touch()
        work.finish({"concepts": 41})
        work.publish()
    with pytest.raises(UserError, match="has 41 concepts, the model 40"):
        Session(Path("artifacts/models/cocomix-0"), Path("artifacts"))


def test_other_pages_cannot_use_the_server(session: Session, client: TestClient) -> None:
    with serving(session) as place:
        host, port = place.split(":")

        def status(**headers: str) -> int:
            asked = {name.replace("_", "-"): text for name, text in headers.items()}
            return httpx.get(f"http://{place}/api/about", headers=asked, trust_env=False).status_code

        assert status() == status(Host=f"localhost:{port}") == status(Origin=f"http://{place}") == 200
        assert status(Host="evil.example") == status(Host=host) == status(Host=f"{host}:{int(port) + 1}") == 421
        assert status(Origin="http://evil.example") == status(Origin=f"http://{host}:{int(port) + 1}") == 403
        assert status(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image") == 403
        page = httpx.get(f"http://{place}/", trust_env=False)
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert page.headers["cross-origin-resource-policy"] == "same-origin"
    assert page.headers["x-content-type-options"] == "nosniff"
    body = json.dumps({"text": "w5"})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/api/read", content=body, headers={"Content-Type": kind}).status_code == 422
    assert client.get("/static/../server.py").status_code == 404
    assert client.get("/docs").status_code == 404


def test_stopping_ends_a_continuation_at_the_next_token(session: Session) -> None:
    pieces: list[str] = []
    stop = Event()

    def say(piece: str) -> None:
        pieces.append(piece)
        stop.set()

    asked = Continuation(text="w5 w9", temperature=0)
    session.write(asked, say=say, stop=stop)
    assert 1 <= len("".join(pieces).split()) < 10
    pieces.clear()
    session.close()
    session.write(asked, say=say, stop=Event())
    assert not pieces


def test_a_page_that_goes_away_stops_its_continuation() -> None:
    stopped = Event()

    class Endless(Session):
        def __init__(self) -> None: ...

        def write(self, *_: Any, say: Any, stop: Event, **__: Any) -> None:
            while not stop.wait(0.01):
                say("more ")
            stopped.set()

    with serving(Endless()) as address:
        connection = http.client.HTTPConnection(address)
        connection.request("POST", "/api/continue", json.dumps({"text": "w5"}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert json.loads(answer.readline()) == {"text": "more "}
        assert not stopped.is_set()
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        assert stopped.wait(20)


def test_the_command_serves_on_loopback_only_and_prints_the_address(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda _, sockets: bound.append(sockets[0].getsockname()))
    main(["explore"])
    (host, port), *_ = bound
    assert host == "127.0.0.1"
    assert capsys.readouterr().out == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
        main(["explore", "--port", str(taken.getsockname()[1])])
    assert "0 takes one that is free" in str(stop.value.code)


@pytest.mark.slow
def test_ctrl_c_ends_a_continuation_and_the_server_quietly(session: Session) -> None:
    command = [sys.executable, "-m", "cocomix", "explore"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout
        address = urlsplit(server.stdout.readline().split()[0])
        connection = http.client.HTTPConnection(address.netloc)
        asked = json.dumps({"text": "w5", "tokens": 47})
        connection.request("POST", "/api/continue", asked, {"Content-Type": "application/json"})
        assert connection.getresponse().readline()
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert "Traceback" not in errors
    assert server.returncode == 0

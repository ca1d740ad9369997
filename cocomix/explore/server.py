"""The server of the page, on loopback only; it loads nothing from the network.

Only this page and programs get in (`cocomix.plumbing.gate`). The content security policy allows the page only its own
files. Requests are limited (`limits`): a request with any other content gets {"error": one line} with a 4xx status, and
the server continues.
"""

import asyncio
import json
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi import Path as PathPart
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from cocomix.explore import limits
from cocomix.explore.calls import Continuation
from cocomix.explore.session import Session
from cocomix.plumbing.as_json import plain
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.gate import Gate

STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class TextRequest(BaseModel):
    """A text to read."""

    model_config = ConfigDict(extra="forbid")

    text: limits.Text


class ConceptRequest(TextRequest):
    """A text, and a concept whose strengths are requested."""

    concept: Annotated[int, Field(ge=0, lt=2**31)]


def application(session: Session) -> FastAPI:
    """The page and its API; a request with an error is answered by {"error": one line}."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(limits.LimitedBody)

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(UserError)
    async def refused(_request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        key, what = ascii(first["loc"][-1]).strip("'"), first["msg"].removeprefix("Value error, ")
        return JSONResponse({"error": f"{key[: limits.EDIT_CHARACTERS]}: {what}"}, status_code=422)

    @app.exception_handler(HTTPException)
    async def refused_by_library(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    @app.get("/api/about")
    def about() -> JSONResponse:
        return JSONResponse(plain(session.about))

    @app.post("/api/read")
    def read(asked: TextRequest) -> JSONResponse:
        return JSONResponse(plain(session.read(asked.text)))

    @app.post("/api/strengths")
    def strengths(asked: ConceptRequest) -> JSONResponse:
        return JSONResponse(session.strengths(asked.text, asked.concept))

    @app.get("/api/search")
    def search(text: Annotated[str, Query(max_length=limits.SEARCH_CHARACTERS)]) -> JSONResponse:
        return JSONResponse(plain(session.search(text)))

    @app.get("/api/concepts/{number}")
    def concept(number: Annotated[int, PathPart(ge=0, lt=2**31)]) -> JSONResponse:
        card = plain(session.concept(number))
        return JSONResponse({**card, "predicted": plain(session.predictions(number))})

    @app.post("/api/calls")
    def calls(asked: Continuation) -> JSONResponse:
        return JSONResponse(plain(session.calls(asked)))

    @app.post("/api/continue")
    async def continued(asked: Continuation) -> StreamingResponse:
        return StreamingResponse(_pieces(session, asked), media_type="application/x-ndjson")

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


async def _pieces(session: Session, asked: Continuation) -> AsyncIterator[str]:
    """Stream a continuation as JSON lines: {"text": ...} for each piece, then {"done": true} or {"error": ...}."""
    loop, stop = asyncio.get_running_loop(), Event()
    lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def say(line: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def write() -> None:
        try:
            session.write(asked, say=lambda piece: say({"text": piece}), stop=stop)
            say({"done": True})
        except UserError as error:
            say({"error": str(error)})
        except Exception as error:  # otherwise the page would wait forever
            traceback.print_exc()
            say({"error": f"the model cannot write this: {error}"})

    loop.run_in_executor(None, write)
    try:
        while True:
            line = await lines.get()
            yield json.dumps(line) + "\n"
            if "text" not in line:
                break
    finally:  # also when the client has disconnected
        stop.set()


def serve(session: Session, opened: socket.socket) -> None:
    """Serve requests on a listening socket until Ctrl-C, which is raised again after the shutdown."""
    _Server(settings(session, opened), session).run(sockets=[opened])


def settings(session: Session, opened: socket.socket) -> uvicorn.Config:
    """uvicorn's configuration for the application, behind the gate."""
    app, limit = Gate(application(session), opened.getsockname()[1]), limits.CONNECTIONS
    return uvicorn.Config(app, log_level="warning", limit_concurrency=limit, timeout_graceful_shutdown=10)


class _Server(uvicorn.Server):
    """Ends running continuations before it waits for the open responses."""

    def __init__(self, config: uvicorn.Config, session: Session) -> None:
        super().__init__(config)
        self._session = session

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM; overrides uvicorn."""
        self._session.close()
        super().handle_exit(sig, frame)

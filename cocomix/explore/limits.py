"""Limits of a request: more than a model can read, and far less than would fill the memory."""

from typing import Annotated

from pydantic import AfterValidator, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocomix.steering.reading import unicode_text

BODY_BYTES = 2**20
"""Maximum size of a request's body."""
TEXT_CHARACTERS = 2**17
"""Maximum length of a text: four characters per token for 32,768 tokens."""
EDITS = 256
EDIT_CHARACTERS = 100
SEARCH_CHARACTERS = 1000
CONNECTIONS = 64
"""Maximum open connections; the server answers further ones with 503. A browser opens six for a page."""


Text = Annotated[str, Field(max_length=TEXT_CHARACTERS), AfterValidator(unicode_text)]
Edit = Annotated[str, Field(max_length=EDIT_CHARACTERS), AfterValidator(unicode_text)]


class LimitedBody:
    """ASGI middleware that reads at most `BODY_BYTES` of a request's body, and otherwise answers 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count the bytes of its body."""
        read = 0
        said = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""

        async def counted() -> Message:
            nonlocal read
            if said.isdecimal() and int(said) > BODY_BYTES:
                raise HTTPException(413, f"the request has {said} bytes; at most {BODY_BYTES} are read")
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_BYTES:
                raise HTTPException(413, f"the request has more than {BODY_BYTES} bytes, the most that are read")
            return message

        await self._app(scope, counted, send)

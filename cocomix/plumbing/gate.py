"""Access control for servers on this machine: only their own pages and programs.

Any page in a browser can send requests to a loopback port. By rebinding its own name to 127.0.0.1 it could read the
answers too. So a request must name this server as its host. If the browser states the page that a request is from, it
must be a page of this server.
"""

import ipaddress
import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocomix.plumbing.loopback import LOOPBACK

EVERYWHERE = ("0.0.0.0", "::")
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """An ASGI application that passes on requests from its own pages and from programs, and refuses others.

    A wrong host is answered by 421, a page of another origin by 403. No answer allows another origin to read it.

    Args:
        app: the application behind it.
        port: the port that it listens on.
        host: the address that it listens on. If that is every address of the machine, a request may name any address,
            which nobody can rebind, or the machine's name.
        public: its name for browsers, `name:port` or `name`, if it differs, such as a proxy's name.
    """

    def __init__(self, app: ASGIApp, port: int, host: str = LOOPBACK[0], public: str = "") -> None:
        self._app, self._port, self._any_address = app, port, host in EVERYWHERE
        names = {*LOOPBACK, host} | ({socket.gethostname(), socket.getfqdn()} if self._any_address else set())
        self._own = {netloc(name.lower(), port) for name in names} | ({public.lower()} if public else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, _without_permissions(send))

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return PlainTextResponse("the Host of this request is another server\n", 421, HEADERS)
        own_pages = {f"{scheme}://{each}" for each in (*self._own, hosts[0]) for scheme in ("http", "https")}
        if not own_pages.issuperset(origin.lower() for origin in headers.getlist("origin")):
            return PlainTextResponse("the Origin of this request is another server's page\n", 403, HEADERS)
        # Requests for images, scripts and frames have no Origin header.
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _follows_a_link(scope, headers):
            return PlainTextResponse("this request is from another server's page\n", 403, HEADERS)
        return None

    def _is_own(self, place: str) -> bool:
        return place in self._own or (self._any_address and _is_address(place, self._port))


def netloc(host: str, port: int) -> str:
    """The network location of a URL, from a host, which may be an IPv6 address, and a port."""
    name = f"[{host}]" if ":" in host else host
    return name if port == 80 else f"{name}:{port}"  # browsers omit the default port


def _is_address(place: str, port: int) -> bool:
    host = place.removesuffix(f":{port}")
    try:
        return netloc(str(ipaddress.ip_address(host.strip("[]"))), port) == place
    except ValueError:
        return False


def _follows_a_link(scope: Scope, headers: Headers) -> bool:
    is_page = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return is_page and scope.get("method") in ("GET", "HEAD")


def _without_permissions(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in headers.keys():  # noqa: SIM118 (the loop changes headers)
                if name.startswith("access-control-"):
                    del headers[name]
            for name, text in HEADERS.items():
                headers.append(name, text)
        await send(message)

    return sent

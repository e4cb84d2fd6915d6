"""What is checked of every request first: the host it names, the page it comes from, the key, and the size of the body."""

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from groundup.core.text import shown
from groundup.serving.protocol import RequestError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/runs", "/leaderboard", "/health")  # pages without data, and whether the server is there
HOST = re.compile(r"(?:\[([^\]]*)\]|([^:\[]*))(?::\d*)?")  # name or IPv6 address, and a port
Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware. `hosts`: names by which the server may be called; `key`: what clients must send, if anything.

    A page of another site, open in the browser of the person who runs the server, could send requests to it. Here it cannot:
    the browser states the page's origin, which must be the server's own; a name that an attacker points to this machine (DNS
    rebinding) is not in `hosts`; and a form cannot send JSON.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: tuple[str, ...], key: str | None) -> None:
        self.app, self.key = app, key.encode() if key else None
        self.hosts = {name for host in hosts for name in (host.lower(), _name(host)) if name}  # a port says nothing

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(Request(scope))
            except RequestError as error:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if _name(host) not in self.hosts:
            message = f"host {shown(host)} is not served here; whoever runs the server can name more hosts"
            raise RequestError(message, "host", 403, "permission_error")
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise RequestError("requests from pages of other sites are not answered", "origin", 403, "permission_error")
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _is_a_visit(request):
            raise RequestError("requests from pages of other sites are not answered", "origin", 403, "permission_error")
        if self.key and request.url.path not in OPEN_PATHS:
            kind, _, given = request.headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self.key):
                message = "a key is needed: Authorization: Bearer KEY"
                raise RequestError(message, None, 401, "authentication_error", "invalid_api_key")
        if request.method == "POST" and not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise RequestError("content-type must be application/json", "content-type", 415)


def _name(host: str) -> str:
    """The name in a Host header, without port; empty for what is no Host header."""
    match = HOST.fullmatch(host.lower())
    return (match[1] or match[2] or "") if match else ""


def _is_a_visit(request: Request) -> bool:
    """Whether somebody follows a link to a page, such as an invitation in their mail: the page itself has no data."""
    kind = request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest")
    return request.method == "GET" and request.url.path in OPEN_PATHS and kind == ("navigate", "document")


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request. Raises RequestError as soon as more than `limit` bytes were read."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RequestError(f"the body has more than {limit:,} bytes", None, 413)
        parts.append(part)
    return b"".join(parts)

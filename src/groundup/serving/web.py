"""What all servers share: listening, pages, errors as JSON. It loads no model."""

import re
import socket
from importlib import resources

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from groundup.core.errors import UserError
from groundup.serving.connections import Connection
from groundup.serving.protocol import RequestError

# No outside address, nothing evaluated from text, in no frame.
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; " \
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SHARED = re.compile(r"<!-- (\w+\.html) -->\n")  # in a page: replaced by a file of serving's pages that several pages share


def page(package: str, name: str, navigation: str = "") -> HTMLResponse:
    """A page of a package's folder `pages`; `navigation`: links to the other pages, as HTML."""
    text = (resources.files(package) / "pages" / name).read_text(encoding="utf-8").replace("<nav></nav>", navigation)
    text = SHARED.sub(lambda match: (resources.files("groundup.serving") / "pages" / match[1]).read_text("utf-8"), text)
    return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY, "x-content-type-options": "nosniff"})


def answer_errors(app: FastAPI) -> None:
    """Answer every error with OpenAI's error object, without internals."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(UserError)
    async def unusable(_: Request, error: UserError) -> Response:
        return JSONResponse(RequestError(str(error)).body, 400)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return JSONResponse(RequestError(text).body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(RequestError("the server failed", status=500, kind="server_error").body, 500)


def server(app: FastAPI, grace: int = 5) -> uvicorn.Server:
    """A server. When it is stopped, answers that are being written have `grace` seconds to end."""
    config = uvicorn.Config(
        app, http=Connection, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=grace
    )
    return uvicorn.Server(config)


def serve_until_stopped(app: FastAPI, listening: socket.socket) -> None:
    """Answer until Ctrl-C."""
    server(app).run(sockets=[listening])


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError for an address that is not free."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        what = "host" if isinstance(error, socket.gaierror) else "port"
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); choose another {what}") from None
    return listening

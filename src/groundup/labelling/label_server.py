"""The labelling page and its routes."""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from groundup.core.errors import UserError
from groundup.labelling.assignment import Judgement, lease_pairs, progress, record
from groundup.labelling.store import LONGEST_NAME, DatabaseUnavailable, Store, annotator_name, now
from groundup.serving.guard import LOOPBACK, Guard, body_of
from groundup.serving.protocol import Body, RequestError, read
from groundup.serving.web import answer_errors, bind, page, serve_until_stopped

logger = logging.getLogger(__name__)
LARGEST_BODY = 8 << 20  # bytes: a hundred judgements with a reason each
Key = Annotated[str, Field(min_length=8, max_length=100, pattern="^[!-~]+$")]
PairId = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]+$")]  # a NUL is no text in Postgres


class AnnotatorBody(Body):
    annotator: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None


class NextRequest(AnnotatorBody):
    count: Annotated[int, Field(ge=1, le=20)] = 1


class JudgementBody(Body):
    key: Key
    pair_id: PairId
    choice: Literal["left", "right", "tie", "both_bad", "skip", "undo"]
    strength: Literal["better", "slightly"] = "better"
    seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None
    reason: Annotated[str, Field(max_length=10_000)] | None = None
    undoes: Key | None = None


class JudgementsRequest(AnnotatorBody):
    judgements: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=100)]


class LabelServer:
    """The routes over one project. Each request is one transaction, so whatever was answered is on the disk."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def project(self) -> dict[str, Any]:
        def read_project() -> dict[str, Any]:
            with self.store.transaction() as connection:
                return {"tokens": self.store.wants_tokens(connection)}

        return await run_in_threadpool(read_project)

    async def next(self, request: Request) -> dict[str, Any]:
        body = read(NextRequest, await body_of(request, LARGEST_BODY))

        def lease() -> dict[str, Any]:
            with self.store.transaction() as connection:
                name = self._who(connection, request, body)
                shown = lease_pairs(self.store, connection, name, body.count, now())
                done = progress(self.store, connection, name)
                guidelines = self.store.settings(connection)["guidelines"]
            return {"annotator": name, "guidelines": guidelines, "pairs": [asdict(pair) for pair in shown], "progress": done}

        return await run_in_threadpool(lease)

    async def judgements(self, request: Request) -> dict[str, Any]:
        """Of what is stored the key is returned, new or not; of what cannot be, its index and why. The others are stored."""
        body = read(JudgementsRequest, await body_of(request, LARGEST_BODY))
        stored, refused = [], []

        def store_judgements() -> dict[str, Any]:
            with self.store.transaction() as connection:
                name = self._who(connection, request, body)
                self.store.ensure_annotator(connection, name)
                lease_minutes = self.store.settings(connection)["lease_minutes"]
                for number, given in enumerate(body.judgements):
                    try:
                        judgement = Judgement(**_judgement_of(given).model_dump())
                        record(connection, name, judgement, now(), lease_minutes)
                    except (RequestError, UserError) as error:
                        refused.append({"number": number, "key": str(given.get("key"))[:100], "why": str(error)[:300]})
                    else:
                        stored.append(judgement.key)
                done = progress(self.store, connection, name)
            return {"stored": stored, "refused": refused, "progress": done}

        return await run_in_threadpool(store_judgements)

    def _who(self, connection: sa.Connection, request: Request, body: AnnotatorBody) -> str:
        """The annotator: by token where anybody has one, else by the name that is given."""
        if not self.store.wants_tokens(connection):
            try:
                return annotator_name(body.annotator or "")
            except UserError as error:
                raise RequestError(f"annotator: {error}", "annotator") from None
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        name = self.store.annotator_of_token(connection, token.strip()) if kind.lower() == "bearer" and token else None
        if name is None:
            raise RequestError("a token is needed: Authorization: Bearer TOKEN", None, 401, "authentication_error")
        return name


def _judgement_of(given: Mapping[str, Any]) -> JudgementBody:
    try:
        judgement = JudgementBody.model_validate(given)
    except ValueError as error:
        first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
        raise RequestError(f"{'.'.join(map(str, first['loc']))[:40]}: {first['msg']}") from None
    if (judgement.choice == "undo") != (judgement.undoes is not None):
        raise RequestError("undoes: the key of what choice = undo takes back, and of nothing else")
    if judgement.reason and "\0" in judgement.reason:
        raise RequestError("reason: has a NUL character")
    return judgement


def create_app(store: Store, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    server = LabelServer(store)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, key=None)  # type: ignore[arg-type]
    app.get("/", response_class=HTMLResponse)(lambda: page("groundup.labelling", "label.html"))
    app.get("/health")(lambda: {"status": "ok"})
    app.get("/project")(server.project)
    app.post("/next")(server.next)
    app.post("/judgements")(server.judgements)
    answer_errors(app)

    @app.exception_handler(DatabaseUnavailable)
    async def try_again(_: Request, error: DatabaseUnavailable) -> Response:
        logger.warning(str(error))
        reply = RequestError("the database is busy or away; nothing was stored, try again", None, 503, "server_error")
        return JSONResponse(reply.body, reply.status, reply.headers)

    return app


def invite(store: Store, names: Sequence[str]) -> dict[str, str]:
    """A token for each name, which is shown once: the database has its digest. Raises UserError for what is no name."""
    tokens = {annotator_name(name): secrets.token_urlsafe(18) for name in names}
    with store.transaction() as connection:
        for name, token in tokens.items():
            store.invite(connection, name, token)
    return tokens


def serve(store: Store, host: str, port: int, names: Sequence[str]) -> dict[str, Any]:
    """Until Ctrl-C. `names`: host names beside `host` by which browsers call it.

    Raises UserError for an address that is not free, and for one that others can reach where annotators have no tokens.
    """
    with store.transaction() as connection:
        if host not in LOOPBACK and not store.wants_tokens(connection):
            raise UserError(f"host {host}: others can reach it, so annotators need tokens: `groundup label invite`")
    listening = bind(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    logger.info(f"a page to label at {address}/; Ctrl-C ends, no judgement is lost")
    hosts = (*LOOPBACK, host, *names)
    serve_until_stopped(create_app(store, hosts), listening)
    with store.transaction() as connection:
        return {"address": address, **progress(store, connection)}

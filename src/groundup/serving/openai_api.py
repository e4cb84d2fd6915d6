"""The server: OpenAI's routes, those of vLLM that lm-eval asks for, and the pages."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import (
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.concurrency import run_in_threadpool

from groundup.serving.answering import answer, stream, submit
from groundup.serving.guard import LOOPBACK, Guard, body_of
from groundup.serving.loaded_models import ServedModel
from groundup.serving.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    RequestError,
    TokenizeRequest,
    read,
)
from groundup.serving.run_folders import RunFolders
from groundup.serving.watching import Board, add_routes
from groundup.serving.web import answer_errors, page

logger = logging.getLogger(__name__)
LARGEST_BODY = 8 << 20  # bytes: a context of a million tokens, as ids
Kind = TypeVar("Kind", bound=Body)


class Server:
    """The routes over some models."""

    def __init__(self, models: dict[str, ServedModel]) -> None:
        self.models, self.started = models, int(time.time())

    def model(self, name: str | None) -> ServedModel:
        """The first model where none is named. Raises RequestError (404) for an unknown name."""
        if name is None and self.models:
            return next(iter(self.models.values()))
        if name is None or name not in self.models:
            known = ", ".join(self.models) or "none"
            raise RequestError(f"no model {(name or '')[:80]!r}; served here: {known}", "model", 404, code="model_not_found")
        return self.models[name]

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    async def _answer(self, request: Request, kind: type[ChatRequest] | type[CompletionRequest]) -> Response:
        body = await body_of(request, LARGEST_BODY)
        parsed = read(kind, body)
        pending = await submit(parsed, self.model(parsed.model), len(body))
        if parsed.stream:
            return StreamingResponse(stream(pending), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        return JSONResponse(await answer(pending, request.receive))

    async def list_models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._described(model) for model in self.models.values()]}

    async def get_model(self, name: str) -> dict[str, Any]:
        return self._described(self.model(name))

    def _described(self, model: ServedModel) -> dict[str, Any]:
        owner = {"object": "model", "created": self.started, "owned_by": "groundup"}
        return {"id": model.name, **owner, "max_model_len": model.context_length, "chat": model.chats}

    async def tokenize(self, request: Request) -> dict[str, Any]:
        parsed = await _read(TokenizeRequest, request)
        model = self.model(parsed.model)
        if (parsed.prompt is None) == (parsed.messages is None):
            raise RequestError("give either prompt or messages", "prompt")

        def ids() -> list[int]:
            if parsed.messages is not None:
                asks = parsed.add_generation_prompt is not False
                return model.prompt_of_messages(parsed.messages, asks)
            assert parsed.prompt is not None
            with_special = parsed.add_special_tokens is not False
            return model.prompt_of_text(parsed.prompt) if with_special else list(model.tokenizer.encode(parsed.prompt))

        token_ids = await run_in_threadpool(ids)
        return {"tokens": token_ids, "count": len(token_ids), "max_model_len": model.context_length}

    async def detokenize(self, request: Request) -> dict[str, Any]:
        parsed = await _read(DetokenizeRequest, request)
        tokenizer = self.model(parsed.model).tokenizer
        if bad := next((token for token in parsed.tokens if token >= len(tokenizer)), None):
            raise RequestError(f"tokens: {bad} is none of {len(tokenizer):,}", "tokens")
        return {"prompt": tokenizer.decode(parsed.tokens)}

    async def tokenizer_info(self, model: str | None = None) -> dict[str, Any]:
        return self.model(model).tokenizer_info()

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def metrics(self) -> PlainTextResponse:
        return PlainTextResponse("".join(self._metrics()), media_type="text/plain; version=0.0.4")

    def _metrics(self) -> Iterator[str]:
        """In Prometheus's text format."""
        for name, counted, what in (
            ("requests_total", "requests", "answers asked for"), ("prompt_tokens_total", "prompt tokens", "tokens read"),
            ("generation_tokens_total", "tokens", "tokens written"), ("steps_total", "steps", "steps of decoding"),
            ("cancelled_total", "cancelled", "answers whose client left"),
        ):  # fmt: skip
            yield f"# HELP groundup_{name} {what}\n# TYPE groundup_{name} counter\n"
            for model in self.models.values():
                yield f'groundup_{name}{{model="{_label(model.name)}"}} {model.scheduler.counts[counted]}\n'
        for name, what in (("running", "answers at work"), ("waiting", "answers that wait for a slot")):
            yield f"# HELP groundup_requests_{name} {what}\n# TYPE groundup_requests_{name} gauge\n"
            for model in self.models.values():
                yield f'groundup_requests_{name}{{model="{_label(model.name)}"}} {len(getattr(model.scheduler, name))}\n'


async def _read(kind: type[Kind], request: Request) -> Kind:
    return read(kind, await body_of(request, LARGEST_BODY))


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def create_app(
    models: dict[str, ServedModel], hosts: tuple[str, ...] = LOOPBACK, key: str | None = None, runs: RunFolders | None = None,
    board: Board | None = None,
) -> FastAPI:  # fmt: skip
    """The ASGI app; the models' schedulers work while it runs. It has pages for models, runs and board where these are given."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        with ExitStack() as stack:
            for model in models.values():
                stack.enter_context(model.scheduler)
            yield

    server = Server(models)
    # Its own pages about the API load scripts from other addresses.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, key=key)  # type: ignore[arg-type]
    app.post("/v1/completions")(server.completions)
    app.post("/v1/chat/completions")(server.chat)
    app.get("/v1/models")(server.list_models)
    app.get("/v1/models/{name:path}")(server.get_model)
    app.post("/tokenize")(server.tokenize)
    app.post("/detokenize")(server.detokenize)
    app.get("/tokenizer_info")(server.tokenizer_info)
    app.api_route("/health", methods=["GET", "HEAD"])(server.health)  # HEAD as load balancers ask
    app.get("/metrics")(server.metrics)
    add_routes(app, runs, board)
    _add_pages(app, {"/": bool(models), "/runs": runs is not None, "/leaderboard": board is not None})
    answer_errors(app)
    return app


def _add_pages(app: FastAPI, given: dict[str, bool]) -> None:
    """Add the pages that are given, each with links to all of them; the first is at / too."""
    names = {"/": "Chat", "/runs": "Runs", "/leaderboard": "Leaderboard"}
    paths = [path for path in names if given[path]]

    def add(path: str, response: Response) -> None:
        async def answer(_: Request) -> Response:
            return response

        app.add_route(path, answer)

    for path in paths:
        current = {path: ' aria-current="page"'}
        links = [f'<a href="{target.strip("/") or "."}"{current.get(target, "")}>{names[target]}</a>' for target in paths]
        navigation = f"<nav>{' '.join(links) if len(links) > 1 else ''}</nav>"
        add(path, page("groundup.serving", f"{names[path].lower()}.html", navigation))
    if paths and paths[0] != "/":
        add("/", RedirectResponse(paths[0].strip("/")))

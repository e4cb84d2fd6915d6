"""The routes of the pages that show runs and a leaderboard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from groundup.core.text import visible
from groundup.evaluation.leaderboard import load, standings
from groundup.serving.protocol import RequestError
from groundup.serving.run_folders import RunFolders


class Board:
    """A leaderboard, read again when its file has changed."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file is no leaderboard."""
        self.path = path
        self.version: tuple[float, int] | None = None
        self.shown: dict[str, Any] = {}
        self.show()

    def show(self) -> dict[str, Any]:
        """{"rows", "said", "standings"}. Raises UserError as `load` does."""
        status = self.path.stat() if self.path.exists() else None
        version = (status.st_mtime, status.st_size) if status else None
        if version is None or version != self.version:
            rows, said = load(self.path)
            boards = standings(rows, self.path.parent)
            for board in (board for task in boards for board in task["tables"]):
                board["rows"] = [{**row, "row": row["row"].model_dump()} for row in board["rows"]]
            self.version, self.shown = version, visible({"rows": len(rows), "said": said, "standings": boards})
        return self.shown


def add_routes(app: FastAPI, runs: RunFolders | None, board: Board | None) -> None:
    def add(path: str, function: Callable[..., dict[str, Any]], *names: str) -> None:
        async def answer(request: Request) -> Response:
            try:
                return JSONResponse(await run_in_threadpool(function, *(request.query_params.get(name, "") for name in names)))
            except OSError:  # a step that is finished gets another name
                raise RequestError("it has changed meanwhile; ask again", status=404) from None

        app.add_route(path, answer)

    if runs is not None:
        add("/runs/list", runs.list)
        add("/runs/run", runs.status, "run")
        add("/runs/curves", runs.curves, "run", "step", "seen")
        add("/runs/samples", runs.samples, "run", "step")
    if board is not None:
        add("/leaderboard/standings", board.show)

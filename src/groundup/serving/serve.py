"""`groundup serve`: open the models, bind the address, answer until Ctrl-C."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.serving.guard import LOOPBACK
from groundup.serving.loaded_models import Capacity, open_all
from groundup.serving.openai_api import create_app
from groundup.serving.run_folders import RunFolders
from groundup.serving.watching import Board
from groundup.serving.web import bind, serve_until_stopped

logger = logging.getLogger(__name__)


def serve(
    specs: Sequence[str], host: str, port: int, key: str | None, names: Sequence[str], capacity: Capacity,
    runs: Path | None = None, board: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Serve until Ctrl-C; returns counts of what was answered. `names`: further host names by which clients call the server.

    `runs`: a folder of runs, `board`: a leaderboard, each for a page. Raises UserError for an address that is not free, for one
    that others can reach where no key is given, and where there is nothing to serve.
    """
    if not specs and runs is None and board is None:
        raise UserError("nothing to serve: give a model, a folder of runs or a leaderboard")
    key = (key or "").strip() or None  # a header's value ends before spaces
    if host not in LOOPBACK and key is None:
        raise UserError(f"host {host}: others can reach it, so a key is needed: set GROUNDUP_KEY")
    shown = runs and RunFolders(runs), board and Board(board)
    listening = bind(host, port)
    models = open_all(specs, capacity)
    for model in models.values():
        for decision in model.scheduler.decisions:
            logger.info(f"{model.name}: {decision}")
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    pages = [f"{what} at {address}/{path}" for what, path, served in (
        ("a page to talk", "", models), ("runs", "runs", runs), ("the leaderboard", "leaderboard", board)
    ) if served]  # fmt: skip
    serving = f"serving {', '.join(models)} at {address}/v1; " if models else ""
    logger.info(f"{serving}{'; '.join(pages)}; Ctrl-C ends")
    hosts = (*LOOPBACK, host, *names)
    app = create_app(models, hosts, key, *shown)
    # The thread that answers waits so long while a scheduler's is in Python. With Python's 5 ms a first token beside 15 streams
    # came 1.5 times as late as alone, with 1 ms 1.2 times, and tokens a fifth faster (AMD EPYC, medians of 30).
    sys.setswitchinterval(0.001)
    serve_until_stopped(app, listening)
    counts = {name: dict(model.scheduler.counts) for name, model in models.items()}
    return {"address": address, "models": counts}

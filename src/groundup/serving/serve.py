"""`groundup serve`: open the models, bind the address, answer until Ctrl-C."""

import logging
from collections.abc import Sequence
from typing import Any

import uvicorn

from groundup.core.errors import UserError
from groundup.serving.api import create_app
from groundup.serving.guard import LOOPBACK
from groundup.serving.models import Capacity, open_all
from groundup.serving.web import bind

logger = logging.getLogger(__name__)


def serve(
    specs: Sequence[str], host: str, port: int, key: str | None, names: Sequence[str], capacity: Capacity
) -> dict[str, Any]:
    """Counts of what was answered, once it is stopped. `names`: host names beside `host` by which clients call it.

    Raises UserError for an address that is not free, and for one that others can reach where no key is given.
    """
    if host not in LOOPBACK and not key:
        raise UserError(f"host {host}: others can reach it, so a key is needed: set GROUNDUP_KEY")
    listening = bind(host, port)
    models = open_all(specs, capacity)
    for model in models.values():
        for decision in model.scheduler.decisions:
            logger.info(f"{model.name}: {decision}")
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    logger.info(f"serving {', '.join(models)} at {address}/v1; a page to talk at {address}/; Ctrl-C ends")
    hosts = (*LOOPBACK, host, *names) if host in LOOPBACK else (host, *names)
    app = create_app(models, hosts, key)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listening])
    counts = {name: dict(model.scheduler.counts) for name, model in models.items()}
    return {"address": address, "models": counts}

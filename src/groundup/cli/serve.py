"""The command `serve`."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import MOST_MB, MOST_TOKENS, result
from groundup.core.errors import UserError


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]MODEL...", help="Model folders or runs, each with a name for clients.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="A run, or a folder of runs, to watch on a page.")] = None,
    leaderboard: Annotated[Path | None, typer.Option(help="A leaderboard.jsonl to show on a page.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    key: Annotated[
        str | None, typer.Option(envvar="GROUNDUP_KEY", show_envvar=True, help="What clients must bring as their API key.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--host-name", help="A name by which clients call this machine; once for each.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=1024, help="Answers that are written at once.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, max=10**6, help="More than these wait no longer: 429.")] = 256,
    context_length: Annotated[
        int | None, typer.Option(min=16, max=MOST_TOKENS, help="Tokens of prompt and answer; the model's if not given.")
    ] = None,
    cache_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Memory for keys and values, for each model.")] = 2048,
) -> None:
    """Answer OpenAI's API, and pages to talk to models and to watch runs, until Ctrl-C."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError("serve needs two more libraries: pip install 'groundup[serve]'") from None
    from groundup.serving.loaded_models import Capacity
    from groundup.serving.serve import serve as run

    capacity = Capacity(slots, waiting, context_length, cache_mb)
    result(run(models or [], host, port, key, name or [], capacity, runs, leaderboard))

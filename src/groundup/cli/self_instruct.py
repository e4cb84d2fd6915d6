"""The command that has a language model write data to fine-tune on."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import LARGEST_SEED, MOST_TOKENS, finite, result


def self_instruct(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder or a run; or http://HOST/v1#NAME.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where conversations, instructions and all answers go.")],
    seeds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Seed tasks: instruction, instances, is_classification; if not given, ours."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10**6, help="Instructions to write.")] = 200,
    shown: Annotated[int, typer.Option(min=1, max=100, help="Tasks in a prompt; fewer for a short context.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer, in tokens.")] = 1024,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a message to answer, as of servers that only chat; else as a text to continue.")
    ] = False,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Requests in flight; no result depends on it.")] = 8,
    input_price: Annotated[
        float, typer.Option(min=0, max=1e9, callback=finite, help="Dollars per million tokens of prompts.")
    ] = 0.0,
    output_price: Annotated[
        float, typer.Option(min=0, max=1e9, callback=finite, help="Dollars per million tokens of answers.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of drawing and sampling.")] = 0,
) -> None:
    """Write conversations with a language model, from a few seed tasks (self-instruct). Run the same command again to resume."""
    from groundup.posttraining.completion_clients import open_client
    from groundup.posttraining.self_instruct import SelfInstructSettings
    from groundup.posttraining.self_instruct import self_instruct as write

    settings = SelfInstructSettings(count, shown, max_tokens, seed, at_once, input_price, output_price)
    with open_client(model, chat, at_once) as client:
        result(write(client, out, settings, seeds))

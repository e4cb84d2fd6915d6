"""Talking to a model in the terminal; the answer appears as it is written."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from groundup.core.device import choose
from groundup.core.text import printable
from groundup.generation.engine import Sampling, generate, room
from groundup.generation.open_folder import DEFAULT, model_folder
from groundup.model.base import LanguageModel
from groundup.model.model_folder import load_decoder
from groundup.tokenizer.chat import answer_ends, render
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import StreamDecoder, Tokenizer

Messages = list[dict[str, str]]


def talk(folder: Path, stage: str | None, temperature: float | None, max_tokens: int, seed: int) -> dict[str, Any]:
    """Read questions from stdin and stream answers to stdout until an empty line or the end of input.

    `folder`: a model, or a run, of which `stage` names the model. A model that ends answers with the end of a message reads
    the whole conversation in its chat template; any other continues each line by itself.
    Raises UserError where there is no model that we load, and where its template refuses the conversation.
    """
    path = model_folder(folder, stage)
    tokenizer = of_model(path)
    model = load_decoder(path).to(choose().torch_device)
    generation = model.generation
    converses = tokenizer.message_end in generation.ends
    ends = answer_ends(tokenizer, generation.ends) if converses else [tokenizer.end_of_text, *generation.ends]
    sampling = Sampling.from_config(generation, max_tokens, temperature)
    if generation.unknown:
        _say(f"generation_config.json asks for {', '.join(generation.unknown)}, which is not done here")
    with suppress(AttributeError):  # somebody else's stdin, as a test's
        sys.stdin.reconfigure(errors="replace")
    messages: Messages = []
    turns = tokens = too_long = 0
    while question := _ask():
        messages.append({"role": "user", "content": question})
        prompt = _prompt(model, tokenizer, messages, max_tokens, converses)
        if prompt is None:
            too_long += 1
            messages.pop()
            continue
        decoder, written = StreamDecoder(tokenizer, within=not converses), []

        def show(_: int, token: int, decoder: StreamDecoder = decoder, written: list[str] = written) -> None:
            written.append(decoder.push(token))
            print(printable(written[-1]), end="", flush=True)

        tokens += len(generate(model, [prompt], ends, sampling, seed + turns, show)[0])
        written.append(decoder.finish())
        print(printable(written[-1]), flush=True)
        messages.append({"role": "assistant", "content": "".join(written)})
        turns += 1
    source = {"model": str(folder)} if path == folder else {"run": str(folder), "stage": stage or DEFAULT}
    return {**source, "turns": turns, "tokens": tokens, "too_long": too_long}


def _prompt(
    model: LanguageModel, tokenizer: Tokenizer, messages: Messages, max_tokens: int, converses: bool
) -> list[int] | None:
    """The ids to continue. The oldest questions and answers are removed from `messages` until the rest fits, which is printed.

    None, with a line too, where the last question alone leaves no room for an answer.
    """
    def ids(messages: Messages) -> list[int]:
        if converses:
            return render(tokenizer, messages, add_generation_prompt=True)[0]
        return tokenizer.prompt(messages[-1]["content"])

    limit, removed = room(model, max_tokens), 0
    if len(last := ids(messages[-1:])) > limit:
        _say(f"{len(last):,} tokens, where the model's context has room for {limit:,} beside an answer: ask for less")
        return None
    while len(prompt := ids(messages)) > limit:
        del messages[:2]
        removed += 1
    if removed:
        _say(
            f"the conversation has outgrown the context: the oldest {removed} of its questions and answers are forgotten, "
            f"the last {len(messages) // 2} are kept"
        )
    return prompt


def _ask() -> str:
    """The next question; "" at the end. On a terminal the line can be edited, and earlier ones come back with the arrows."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  (input() then edits the line and remembers earlier ones)
        print(file=sys.stderr, flush=True)
        try:
            return input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            print(file=sys.stderr, flush=True)  # Ctrl-D leaves the cursor behind the prompt
            return ""
    return sys.stdin.readline().strip()


def _say(line: str) -> None:
    print(printable(f"  {line}"), file=sys.stderr, flush=True)

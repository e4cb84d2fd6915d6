"""Talking to a model in the terminal; the answer appears as it is written."""

import sys
from pathlib import Path
from typing import Any

from groundup.core.seals import open_stage
from groundup.device import choose
from groundup.errors import UserError
from groundup.model.folder import load_decoder
from groundup.serving.engine import Sampling, generate, room
from groundup.tokenizer.chat import answer_ends, render
from groundup.tokenizer.tokenizer import StreamDecoder, Tokenizer

STAGES = ("base", "sft", "dpo", "ppo")


def talk(folder: Path, stage: str, temperature: float | None, max_tokens: int, seed: int) -> dict[str, Any]:
    """Read questions from stdin and stream answers to stdout until an empty line or the end of input."""
    if stage not in STAGES:
        raise UserError(f"--stage {stage}: choose one of {', '.join(STAGES)}")
    model_folder = open_stage(folder, stage)
    tokenizer = Tokenizer.load(model_folder)
    model = load_decoder(model_folder).to(choose().torch_device)
    sampling = Sampling.by(model.generation, max_tokens, temperature)
    stated = model.generation.ends
    ends = [tokenizer.end_of_text, *stated] if stage == "base" else answer_ends(tokenizer, stated)
    sys.stdin.reconfigure(errors="replace")
    messages: list[dict[str, str]] = []
    turns = tokens = 0
    while question := _ask():
        messages.append({"role": "user", "content": question})
        while len(prompt := _prompt(tokenizer, stage, messages)) > room(model, max_tokens) and len(messages) > 1:
            del messages[:2]  # the oldest question and its answer
        if len(prompt) > room(model, max_tokens):
            said = f"groundup: {len(prompt):,} tokens are more than the model can read; ask a shorter question"
            print(said, file=sys.stderr, flush=True)
            messages.clear()
            continue
        decoder, written = StreamDecoder(tokenizer), []

        def show(_: int, token: int, decoder: StreamDecoder = decoder, written: list[str] = written) -> None:
            written.append(decoder.push(token))
            print(printable(written[-1]), end="", flush=True)

        tokens += len(generate(model, [prompt], ends, sampling, seed + turns, show)[0])
        written.append(decoder.finish())
        print(printable(written[-1]), flush=True)
        messages.append({"role": "assistant", "content": "".join(written)})
        turns += 1
    return {"run": str(folder), "stage": stage, "turns": turns, "tokens": tokens}


def _prompt(tokenizer: Tokenizer, stage: str, messages: list[dict[str, str]]) -> list[int]:
    if stage == "base":
        return [tokenizer.end_of_text, *tokenizer.encode(messages[-1]["content"])]
    return render(tokenizer, messages, add_generation_prompt=True)[0]


def printable(text: str) -> str:
    """Model output is untrusted: without control characters it cannot command the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def _ask() -> str:
    """The next question; "" at the end. On a terminal the line can be edited, and earlier ones come back with the arrows."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (input() then edits the line and remembers earlier ones)

        print(file=sys.stderr, flush=True)
        try:
            return input("> ").strip()
        except EOFError:
            return ""
    return sys.stdin.readline().strip()

"""One method of post-training by itself: a run of one step, from anybody's model and files."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import read_object
from groundup.generation.open_folder import single_model
from groundup.pipeline import recipe as recipes
from groundup.pipeline.steps import dry, execute, main_figures, show_summary, steps_of

# A model learns and writes answers of up to half its context; a thousand tokens suffice for most published conversations.
LONGEST_ANSWER = 1024
SINGLE_PROCESS_KINDS = ("ppo", "grpo")  # kinds that train in one process
HELD_OUT_QUESTIONS = 32  # that are answered by sampling after SFT, which takes a large model long


def run_one(
    kind: str, model: Path, data: Sequence[Path], out: Path, settings: Sequence[str], *, held_out: Sequence[Path] = (),
    strict: bool = False, seed: int = 0, more: Mapping[str, Any] | None = None, dry_run: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make OUT/KIND of the model and the files. The same call again resumes, or returns the results that are there.

    `settings`: key=value of the kind's section, or section.key=value. `more`: values of the kind's section.
    Raises UserError, in one line, for what is wrong with any of them.
    """
    if kind in SINGLE_PROCESS_KINDS and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if int(os.environ.get("RANK", 0)):
            sys.exit(2)  # the first process says it
        raise UserError(f"{kind} answers and learns in one process; start it without torchrun")
    if more and not more.get("reward", "named"):
        raise UserError("--reward: is empty; name a reward model's folder, arithmetic, length, count=WORD or module:function")
    source = single_model(model)
    length = read_object(source / "config.json").get("max_position_embeddings")
    half = length // 2 if type(length) is int else LONGEST_ANSWER
    section = {"data": [str(path) for path in data], **(more or {})}
    section |= {"held_out": [str(path) for path in held_out]} if held_out else {}
    section |= {"strict": True} if strict else {}
    content: dict[str, Any] = {
        "name": out.resolve().name or kind,
        "seed": seed,
        "standard": [kind],
        "given": {"base" if kind == "sft" else "sft": str(source)},
        "sft": {"max_answer_tokens": max(1, min(half, LONGEST_ANSWER)), "held_out_questions": HELD_OUT_QUESTIONS},
    }
    content[kind] = {**content.get(kind, {}), **section}
    overrides = [setting if "." in setting.partition("=")[0] else f"{kind}.{setting}" for setting in settings]
    recipe = recipes.resolve(content, overrides, f"groundup {kind}")
    steps = steps_of(recipe)[:-1]  # a report is of a whole run
    if dry_run:
        return dry(recipe, out, steps)
    manifest = execute(recipe, out, steps)[kind]
    show_summary({kind: manifest["seconds"]}, {kind: main_figures(kind, manifest["results"])})
    return {"run": str(out), "model": str(out / kind), "seconds": manifest["seconds"], **manifest["results"]}

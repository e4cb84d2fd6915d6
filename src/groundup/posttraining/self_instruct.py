"""Self-instruct (Wang et al. 2023): a few seed tasks become many, written by a language model.

Three passes: instructions, each unlike all before it (ROUGE-L); whether each is a classification; instances of each, the output
first for classifications and the input first for others. Given the answers of the model everything follows from the seed
number, so a command that was killed repeats the same steps, over the answers that are on disk.
"""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from groundup.core.errors import UserError
from groundup.core.files import write_json, write_jsonl
from groundup.core.outputs import require_made_with
from groundup.core.plain_files import expanded
from groundup.core.progress import Progress
from groundup.data.contracts import MAX_ROW_BYTES, no_rows_message
from groundup.data.conversations import columns_of, conversation_of
from groundup.data.file_kinds import kind_of
from groundup.data.messages import BadRow
from groundup.data.readers import Refused, records
from groundup.posttraining import task_prompts
from groundup.posttraining.completion_clients import AnswerLog, Ask, CompletionClient
from groundup.posttraining.rouge import Distinct
from groundup.posttraining.task_prompts import Instance, InstructionTask

logger = logging.getLogger(__name__)

SEEDS = "self_instruct_seeds.jsonl"
NEAR = 0.7  # ROUGE-L from which on an instruction is like another
ROUND = 5  # requests that are made of the same instructions, as in the paper's code
GIVE_UP = 50  # requests after each other of which no instruction is kept
CHUNK = 64  # requests between two counts of the progress
GENERATED_SHARE = 4  # of the instructions that are shown, one of so many was generated
# Table 4 of the paper: tokens, temperature, top_p and presence penalty.
INSTRUCTION_TOKENS, LABEL_TOKENS, INSTANCE_TOKENS = 1024, 3, 300


@dataclass(frozen=True)
class SelfInstructSettings:
    count: int = 200  # instructions that are wanted
    shown: int = 8  # tasks in a prompt for instructions; half as many where they are shown with instances
    max_tokens: int = INSTRUCTION_TOKENS  # of any answer
    seed: int = 0
    at_once: int = 8  # requests in flight; no result depends on it
    input_price: float = 0.0  # dollars per million tokens
    output_price: float = 0.0


def self_instruct(
    client: CompletionClient, out: Path, settings: SelfInstructSettings, seeds: Path | None = None
) -> dict[str, Any]:
    """Write `conversations.jsonl` (TRL's messages), `instructions.jsonl` (in the format of the seeds) and `self_instruct.json`.

    `answers.jsonl` keeps every answer. Returns the content of `self_instruct.json` and the seconds of this call.
    Raises UserError where there are no seeds, another process is at work there, or no conversation came of it.
    """
    started = time.monotonic()
    tasks = read_seeds(seeds)
    names = ("conversations.jsonl", "instructions.jsonl", "self_instruct.json")
    require_made_with(out / "answers.jsonl", *(out / name for name in names))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            found = _Run(tasks, AnswerLog(out / "answers.jsonl", client, settings.at_once), settings).write(out)
    except Timeout:
        raise UserError(f"{out}: another process is at work there") from None
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def read_seeds(path: Path | None = None) -> list[InstructionTask]:
    """Those of a file, or ours. Raises UserError where it holds none; bad rows are counted and said."""
    if path is None:
        with resources.as_file(resources.files("groundup.posttraining") / SEEDS) as ours:
            return read_seeds(ours)
    path = expanded(path)
    kind = kind_of(path)
    if kind.form in ("text", "archive"):
        raise UserError(f"{path}: no rows: give seed tasks as JSON lines with instruction, instances, is_classification")
    refused, tasks = Refused(), []
    for number, row in records(path, refused, kind, max_bytes=MAX_ROW_BYTES):
        try:
            tasks.append(task_of(row))
        except BadRow as error:
            refused.first = refused.first or f"{path}: row {number + 1}: {error}"
            refused.add(error.reason, f"{path}: row {number + 1}")
    if not tasks:
        raise UserError(f"{path}: {no_rows_message('seed tasks', path, refused)}")
    if refused:
        logger.warning("%s: %d seed tasks; passed over: %s", path, len(tasks), refused)
    return tasks


def task_of(row: Mapping[str, Any]) -> InstructionTask:
    """`instruction`, `instances` (each with `input` and `output`) and `is_classification`; or Alpaca's row, of one instance.

    Raises BadRow for anything else.
    """
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise BadRow("no instruction", f"instruction must be text; columns: {columns_of(row)}")
    instances = row.get("instances")
    if instances is None:
        instances = [row]
    if not isinstance(instances, list | tuple) or not all(isinstance(one, Mapping) for one in instances):
        raise BadRow("no list of instances")
    found = [(one.get("input") or "", one.get("output")) for one in instances]
    if not found or not all(isinstance(text, str) for pair in found for text in pair):
        raise BadRow("an instance without output", "each instance must have an output, and may have an input, both text")
    if not all(output.strip() for _, output in found):
        raise BadRow("an empty output")
    is_classification = row.get("is_classification")
    if is_classification not in (None, True, False):
        raise BadRow("is_classification that is neither true nor false")
    return InstructionTask(instruction, bool(is_classification), tuple(Instance(*pair) for pair in found))


class _Run:
    def __init__(self, seeds: Sequence[InstructionTask], log: AnswerLog, settings: SelfInstructSettings) -> None:
        self.seeds, self.log, self.settings = seeds, log, settings
        self.dead_ends: dict[str, Counter[str]] = {name: Counter() for name in ("instructions", "classification", "instances")}
        self.requests: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def write(self, out: Path) -> dict[str, Any]:
        instructions = self.instructions()
        tasks = self.instances(self.classified(instructions))
        rows = [
            conversation_of({"instruction": task.instruction, "input": one.input, "output": one.output}).row
            for task in tasks for one in task.instances
        ]  # fmt: skip
        found = {
            "out": str(out), "seeds": len(self.seeds), "wanted": self.settings.count, "instructions": len(instructions),
            "classifications": sum(task.is_classification for task in tasks), "conversations": len(rows),
            "requests": dict(self.requests), "tokens": dict(self.tokens),
            "dead_ends": {name: dict(sorted(counts.items())) for name, counts in self.dead_ends.items()},
        }  # fmt: skip
        if self.settings.input_price or self.settings.output_price:
            found["dollars"] = self.dollars
        if not rows:
            raise UserError(f"no conversation came of {self.requests.total()} requests; dead ends: {self._said()}"[:300])
        if len(instructions) < self.settings.count:
            logger.warning(
                "%d instructions instead of %d: of %d requests after each other none was kept; dead ends: %s",
                len(instructions), self.settings.count, GIVE_UP, self._said(),
            )  # fmt: skip
        write_jsonl(out / "conversations.jsonl", rows)
        write_jsonl(out / "instructions.jsonl", [_row(f"generated_{number}", task) for number, task in enumerate(tasks)])
        write_json(out / "self_instruct.json", found)
        return found

    def _said(self) -> str:
        every = sum(self.dead_ends.values(), Counter[str]())
        return ", ".join(f"{reason}: {count}" for reason, count in every.most_common()) or "none"

    @property
    def dollars(self) -> float:
        """Of the tokens that were counted; those of earlier calls of the command, too."""
        prices = self.settings.input_price, self.settings.output_price
        return round((self.tokens["prompt"] * prices[0] + self.tokens["answer"] * prices[1]) / 1e6, 6)

    def instructions(self) -> list[str]:
        """As many as are wanted, or fewer where the model has no more ideas."""
        distinct, found = Distinct(NEAR), list[str]()
        for task in self.seeds:
            distinct.add(task.instruction)
        ends, fruitless, number = self.dead_ends["instructions"], 0, 0
        with Progress("instructions", total=self.settings.count, unit="instructions") as progress:
            while len(found) < self.settings.count and fruitless < GIVE_UP:
                asks = [self._more(number + one, found) for one in range(ROUND)]
                number += ROUND
                for answer in self._ask("instructions", asks):
                    before = len(found)
                    good, bad = task_prompts.read_instructions(answer)
                    ends.update(bad)
                    for one in good:
                        if distinct.near(one) is not None:
                            ends["like another"] += 1
                        elif len(found) == self.settings.count:
                            ends["beyond the number wanted"] += 1
                        else:
                            distinct.add(one)
                            found.append(one)
                    fruitless = 0 if len(found) > before else fruitless + 1
                    progress.advance(len(found) - before, note=f"{ends['like another']:,} like another")
        return found

    def _more(self, number: int, found: Sequence[str]) -> Ask:
        drawn, shown = _random(self.settings.seed, "instructions", number), self.settings.shown
        own = drawn.sample(found, min(len(found), shown // GENERATED_SHARE))
        given = drawn.sample(self.seeds, min(len(self.seeds), shown - len(own)))
        texts = [*own, *(task.instruction for task in given)]
        drawn.shuffle(texts)
        stops = ("\n\n", f"\n{2 * shown}.")
        prompt = task_prompts.more_instructions(texts)
        return Ask(prompt, self._most(INSTRUCTION_TOKENS), stops, 0.7, 0.5, 2.0, drawn.randrange(2**31))

    def classified(self, instructions: Sequence[str]) -> list[InstructionTask]:
        """Asked where the seeds have both kinds; else all are of the kind that they have."""
        kinds = [[task for task in self.seeds if task.is_classification is kind] for kind in (True, False)]
        if not all(kinds):
            return [InstructionTask(one, bool(kinds[0]), ()) for one in instructions]
        asks = []
        for number, one in enumerate(instructions):
            drawn = _random(self.settings.seed, "classification", number)
            shown = [task for some in kinds for task in drawn.sample(some, min(len(some), max(1, self.settings.shown // 2)))]
            drawn.shuffle(shown)
            prompt = task_prompts.is_classification(one, shown)
            asks.append(Ask(prompt, LABEL_TOKENS, ("\n", "Task:")))
        found = []
        for one, answer in zip(instructions, self._with_progress("classification", asks), strict=True):
            yes = task_prompts.says_yes(answer)
            if yes is None:
                self.dead_ends["classification"]["neither yes nor no: taken as no"] += 1
            found.append(InstructionTask(one, yes is True, ()))
        return found

    def instances(self, tasks: Sequence[InstructionTask]) -> list[InstructionTask]:
        """The tasks of which there are instances, with them."""
        asks = []
        for number, task in enumerate(tasks):
            drawn = _random(self.settings.seed, "instances", number)
            # A label needs its input; of other tasks those without input are shown too.
            usable = [one for one in self.seeds if one.is_classification is task.is_classification]
            if task.is_classification:
                usable = [one for one in usable if all(instance.input.strip() for instance in one.instances)]
            shown = drawn.sample(usable, min(len(usable), max(1, self.settings.shown // 2)))
            make = task_prompts.output_first if task.is_classification else task_prompts.input_first
            asks.append(Ask(make(task.instruction, shown), self._most(INSTANCE_TOKENS), ("Task:",), presence_penalty=1.5))
        found = []
        for task, answer in zip(tasks, self._with_progress("instances", asks), strict=True):
            good, bad = task_prompts.read_instances(answer, task.instruction, task.is_classification)
            self.dead_ends["instances"].update(bad)
            if good:
                found.append(replace(task, instances=tuple(good)))
            else:
                self.dead_ends["instances"]["instructions without an instance"] += 1
        return found

    def _most(self, tokens: int) -> int:
        return min(tokens, self.settings.max_tokens)

    def _with_progress(self, what: str, asks: Sequence[Ask]) -> Iterator[Any]:
        with Progress(what, total=len(asks), unit="answers") as progress:
            for first in range(0, len(asks), CHUNK):
                some = asks[first : first + CHUNK]
                yield from self._ask(what, some)
                progress.advance(len(some))

    def _ask(self, what: str, asks: Sequence[Ask]) -> list[Any]:
        answers = self.log.ask(asks)
        self.requests[what] += len(asks)
        for answer in answers:
            self.tokens["prompt"] += answer.prompt_tokens or 0
            self.tokens["answer"] += answer.answer_tokens or 0
            self.tokens["answers_not_counted"] += answer.prompt_tokens is None or answer.answer_tokens is None
        return answers


def _random(*parts: object) -> random.Random:
    """A generator for one request: what it draws does not depend on requests before it."""
    return random.Random(blake2b(json.dumps(parts).encode(), digest_size=16).digest())


def _row(name: str, task: InstructionTask) -> dict[str, Any]:
    instances = [{"input": one.input, "output": one.output} for one in task.instances]
    return {"id": name, "instruction": task.instruction, "instances": instances, "is_classification": task.is_classification}

"""Self-instruct (Wang et al. 2023): a few seed tasks become many, written by a language model.

Three passes: instructions, each unlike all before it (ROUGE-L); whether each is a classification; instances of each, the output
first for classifications and the input first for others. Everything but the model's answers follows from the seed number, so
a command that was killed repeats the same requests and takes their answers from disk.
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
from groundup.core.text import well_formed
from groundup.data.contracts import MAX_ROW_BYTES, no_rows_message
from groundup.data.conversations import columns_of, conversation_of
from groundup.data.file_kinds import kind_of
from groundup.data.messages import BadRow
from groundup.data.readers import Refused, records
from groundup.posttraining import task_prompts
from groundup.posttraining.completion_clients import AnswerLog, CompletionClient, PromptRequest
from groundup.posttraining.rouge import Distinct
from groundup.posttraining.task_prompts import Instance, InstructionTask

logger = logging.getLogger(__name__)

SEEDS = "self_instruct_seeds.jsonl"
NEAR = 0.7  # ROUGE-L from which on an instruction is a near duplicate of another
ROUND = 5  # requests that draw from the same instructions, as in the paper's code
GIVE_UP = 50  # successive requests of which no instruction is kept
CHUNK = 64  # requests between two updates of the progress
GENERATED_SHARE = 4  # of the instructions in a prompt, one in so many was generated
# Table 4 of the paper: tokens, temperature, top_p and presence penalty.
INSTRUCTION_TOKENS, LABEL_TOKENS, INSTANCE_TOKENS = 1024, 3, 300


@dataclass(frozen=True)
class SelfInstructSettings:
    count: int = 200  # instructions to make
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
    Raises UserError where there are no seeds, another process works in `out`, or no conversation was made.
    """
    started = time.monotonic()
    tasks = read_seeds(seeds)
    names = ("conversations.jsonl", "instructions.jsonl", "self_instruct.json")
    require_made_with(out / "answers.jsonl", *(out / name for name in names))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            summary = _Run(tasks, AnswerLog(out / "answers.jsonl", client, settings.at_once), settings).write(out)
    except Timeout:
        raise UserError(f"{out}: another process is at work there") from None
    return {**summary, "seconds": round(time.monotonic() - started, 1)}


def read_seeds(path: Path | None = None) -> list[InstructionTask]:
    """The seed tasks of a file, or those we ship. Bad rows are counted and logged. Raises UserError where there is none."""
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
    if not isinstance(instances, list | tuple) or not all(isinstance(instance, Mapping) for instance in instances):
        raise BadRow("no list of instances")
    pairs = [(instance.get("input") or "", instance.get("output")) for instance in instances]
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise BadRow("an instance without output", "each instance must have an output, and may have an input, both text")
    if not all(output.strip() for _, output in pairs):
        raise BadRow("an empty output")
    is_classification = row.get("is_classification")
    if is_classification not in (None, True, False):
        raise BadRow("is_classification that is neither true nor false")
    given = tuple(Instance(well_formed(text), well_formed(output)) for text, output in pairs)
    return InstructionTask(well_formed(instruction), bool(is_classification), given)


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
            conversation_of({"instruction": task.instruction, "input": instance.input, "output": instance.output}).row
            for task in tasks for instance in task.instances
        ]  # fmt: skip
        summary = {
            "out": str(out), "seeds": len(self.seeds), "wanted": self.settings.count, "instructions": len(instructions),
            "classifications": sum(task.is_classification for task in tasks), "conversations": len(rows),
            "requests": dict(self.requests), "tokens": dict(self.tokens),
            "dead_ends": {name: dict(sorted(counts.items())) for name, counts in self.dead_ends.items()},
        }  # fmt: skip
        if self.settings.input_price or self.settings.output_price:
            summary["dollars"] = self.dollars
        if not rows:
            message = f"no conversation came of {self.requests.total()} requests; dead ends: {self._dead_end_counts()}"
            raise UserError(message[:300])
        if len(instructions) < self.settings.count:
            logger.warning(
                "%d instructions instead of %d: of %d requests after each other none was kept; dead ends: %s",
                len(instructions), self.settings.count, GIVE_UP, self._dead_end_counts(),
            )  # fmt: skip
        write_jsonl(out / "conversations.jsonl", rows)
        write_jsonl(out / "instructions.jsonl", [_row(f"generated_{number}", task) for number, task in enumerate(tasks)])
        write_json(out / "self_instruct.json", summary)
        return summary

    def _dead_end_counts(self) -> str:
        counts = sum(self.dead_ends.values(), Counter[str]())
        return ", ".join(f"{reason}: {count}" for reason, count in counts.most_common()) or "none"

    @property
    def dollars(self) -> float:
        """The price of all tokens that were counted, those of earlier calls of the command included."""
        prices = self.settings.input_price, self.settings.output_price
        return round((self.tokens["prompt"] * prices[0] + self.tokens["answer"] * prices[1]) / 1e6, 6)

    def instructions(self) -> list[str]:
        """`settings.count` new instructions, or fewer where the model writes no new ones any more."""
        distinct, kept = Distinct(NEAR), list[str]()
        for task in self.seeds:
            distinct.add(task.instruction)
        dead_ends, fruitless, index = self.dead_ends["instructions"], 0, 0
        with Progress("instructions", total=self.settings.count, unit="instructions") as progress:
            while len(kept) < self.settings.count and fruitless < GIVE_UP:
                requests = [self._instruction_request(index + offset, kept) for offset in range(ROUND)]
                index += ROUND
                for answer in self._complete("instructions", requests):
                    before = len(kept)
                    candidates, reasons = task_prompts.read_instructions(answer)
                    dead_ends.update(reasons)
                    for instruction in candidates:
                        if distinct.near_duplicate(instruction) is not None:
                            dead_ends["like another"] += 1
                        elif len(kept) == self.settings.count:
                            dead_ends["beyond the number wanted"] += 1
                        else:
                            distinct.add(instruction)
                            kept.append(instruction)
                    fruitless = 0 if len(kept) > before else fruitless + 1
                    progress.advance(len(kept) - before, note=f"{dead_ends['like another']:,} like another")
        return kept

    def _instruction_request(self, index: int, kept: Sequence[str]) -> PromptRequest:
        generator, shown = _random(self.settings.seed, "instructions", index), self.settings.shown
        generated = generator.sample(kept, min(len(kept), shown // GENERATED_SHARE))
        seeds = generator.sample(self.seeds, min(len(self.seeds), shown - len(generated)))
        texts = [*generated, *(task.instruction for task in seeds)]
        generator.shuffle(texts)
        stops = ("\n\n", f"\n{2 * shown}.")
        prompt = task_prompts.more_instructions(texts)
        return PromptRequest(prompt, self._token_limit(INSTRUCTION_TOKENS), stops, 0.7, 0.5, 2.0, generator.randrange(2**31))

    def classified(self, instructions: Sequence[str]) -> list[InstructionTask]:
        """The instructions as tasks. The model is asked for the kind of each where the seeds have both, else all have theirs."""
        kinds = [[task for task in self.seeds if task.is_classification is kind] for kind in (True, False)]
        if not all(kinds):
            return [InstructionTask(instruction, bool(kinds[0]), ()) for instruction in instructions]
        requests = []
        for index, instruction in enumerate(instructions):
            generator = _random(self.settings.seed, "classification", index)
            per_kind = max(1, self.settings.shown // 2)
            shown = [task for kind in kinds for task in generator.sample(kind, min(len(kind), per_kind))]
            generator.shuffle(shown)
            prompt = task_prompts.is_classification(instruction, shown)
            requests.append(PromptRequest(prompt, LABEL_TOKENS, ("\n", "Task:")))
        tasks = []
        for instruction, answer in zip(instructions, self._with_progress("classification", requests), strict=True):
            is_classification = task_prompts.says_yes(answer)
            if is_classification is None:
                self.dead_ends["classification"]["neither yes nor no: taken as no"] += 1
            tasks.append(InstructionTask(instruction, is_classification is True, ()))
        return tasks

    def instances(self, tasks: Sequence[InstructionTask]) -> list[InstructionTask]:
        """The tasks with their instances; those without any are left out."""
        requests = []
        for index, task in enumerate(tasks):
            generator = _random(self.settings.seed, "instances", index)
            # A label needs its input; other tasks are shown also without input.
            seeds = [seed for seed in self.seeds if seed.is_classification is task.is_classification]
            if task.is_classification:
                seeds = [seed for seed in seeds if all(instance.input.strip() for instance in seed.instances)]
            shown = generator.sample(seeds, min(len(seeds), max(1, self.settings.shown // 2)))
            make = task_prompts.output_first if task.is_classification else task_prompts.input_first
            prompt, max_tokens = make(task.instruction, shown), self._token_limit(INSTANCE_TOKENS)
            requests.append(PromptRequest(prompt, max_tokens, ("Task:",), presence_penalty=1.5))
        kept = []
        for task, answer in zip(tasks, self._with_progress("instances", requests), strict=True):
            instances, reasons = task_prompts.read_instances(answer, task.instruction, task.is_classification)
            self.dead_ends["instances"].update(reasons)
            if instances:
                kept.append(replace(task, instances=tuple(instances)))
            else:
                self.dead_ends["instances"]["instructions without an instance"] += 1
        return kept

    def _token_limit(self, tokens: int) -> int:
        return min(tokens, self.settings.max_tokens)

    def _with_progress(self, stage: str, requests: Sequence[PromptRequest]) -> Iterator[Any]:
        with Progress(stage, total=len(requests), unit="answers") as progress:
            for first in range(0, len(requests), CHUNK):
                part = requests[first : first + CHUNK]
                yield from self._complete(stage, part)
                progress.advance(len(part))

    def _complete(self, stage: str, requests: Sequence[PromptRequest]) -> list[Any]:
        answers = self.log.complete(requests)
        self.requests[stage] += len(requests)
        for answer in answers:
            self.tokens["prompt"] += answer.prompt_tokens or 0
            self.tokens["answer"] += answer.answer_tokens or 0
            self.tokens["answers_not_counted"] += answer.prompt_tokens is None or answer.answer_tokens is None
        return answers


def _random(*parts: object) -> random.Random:
    """A generator for one request: what it draws does not depend on requests before it."""
    return random.Random(blake2b(json.dumps(parts).encode(), digest_size=16).digest())


def _row(name: str, task: InstructionTask) -> dict[str, Any]:
    instances = [{"input": instance.input, "output": instance.output} for instance in task.instances]
    return {"id": name, "instruction": task.instruction, "instances": instances, "is_classification": task.is_classification}

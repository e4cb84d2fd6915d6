"""The prompts of self-instruct (Wang et al. 2023, appendix A), and the parsing of the answers.

Every demonstration is a seed task, so a user's seeds decide on language, form and subject. What cannot be used is returned as a
list of reasons.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from groundup.core import words
from groundup.posttraining.completion_clients import CUT, REFUSED, Completion

FEWEST_WORDS, MOST_WORDS = 4, 150  # of an instruction, as in the paper's code
# What a language model can neither see nor make.
UNFIT = ("image", "images", "graph", "graphs", "picture", "pictures", "photo", "photos", "video", "videos", "audio", "file",
         "files", "map", "maps", "draw", "plot", "go to")  # fmt: skip
UNFIT_WORD = re.compile(rf"\b({'|'.join(UNFIT)})\b", re.IGNORECASE)
NUMBER = re.compile(r"(?:\A|\n)[ \t]*\d+ ?[.)](?=\s|\Z)")
EXAMPLE = re.compile(r"(?:\A|\n)[ \t]*Example ?\d*[.:]?[ \t]*(?=\n|\Z)", re.IGNORECASE)
OUTPUT = re.compile(r"(?:\A|\n)[ \t]*Output ?\d*:", re.IGNORECASE)
INPUT = re.compile(r"\A\s*Input ?\d*:", re.IGNORECASE)
LABEL = re.compile(r"(?:\A|\n)[ \t]*Class label ?\d*:", re.IGNORECASE)
NO_INPUT = re.compile(r"\W*(none|n/?a|no ?input|no input (is )?(needed|required|necessary)|empty)?\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Instance:
    input: str
    output: str


@dataclass(frozen=True)
class InstructionTask:
    instruction: str
    is_classification: bool
    instances: tuple[Instance, ...]


def one_line(text: str) -> str:
    return " ".join(text.split())


def more_instructions(shown: Sequence[str]) -> str:
    """The list of tasks that is to be continued."""
    lines = [f"{number}. {one_line(text).rstrip(':')}\n" for number, text in enumerate(shown, start=1)]
    return f"Come up with a series of tasks:\n\n{''.join(lines)}{len(shown) + 1}."


def is_classification(instruction: str, shown: Sequence[InstructionTask]) -> str:
    question = "Can the following task be regarded as a classification task with finite output labels?"
    query = "Is it classification?"
    demonstrations = [
        f"Task: {one_line(task.instruction)}\n{query} {'Yes' if task.is_classification else 'No'}\n\n" for task in shown
    ]
    return f"{question}\n\n{''.join(demonstrations)}Task: {instruction}\n{query}"


def input_first(instruction: str, shown: Sequence[InstructionTask]) -> str:
    return (
        "Come up with examples for the following tasks. Try to generate multiple examples when possible. If a task needs no "
        f"input, write its output alone.\n\n{''.join(map(_with_inputs, shown))}Task: {instruction}\nExample 1\n"
    )


def output_first(instruction: str, shown: Sequence[InstructionTask]) -> str:
    """Labels come first: where inputs come first, most that a model writes are of one label."""
    return (
        "Given a classification task, write an input for each of its class labels.\n\n"
        f"{''.join(map(_with_labels, shown))}Task: {instruction}\nClass label:"
    )


def _with_inputs(task: InstructionTask) -> str:
    parts = []
    for number, instance in enumerate(task.instances, start=1):
        input_line = f"Input: {instance.input.strip()}\n" if instance.input.strip() else ""
        parts.append(f"Example {number}\n{input_line}Output: {instance.output.strip()}\n")
    return f"Task: {one_line(task.instruction)}\n{''.join(parts)}\n"


def _with_labels(task: InstructionTask) -> str:
    parts = [f"Class label: {one_line(instance.output)}\nInput: {instance.input.strip()}\n" for instance in task.instances]
    return f"Task: {one_line(task.instruction)}\n{''.join(parts)}\n"


def read_instructions(answer: Completion) -> tuple[list[str], list[str]]:
    """The instructions of a list, and the reasons why other entries are none."""
    if answer.end == REFUSED:
        return [], ["refused by the server"]
    parts = [one_line(part) for part in NUMBER.split(answer.text)]
    candidates, reasons = [part for part in parts if part], []
    if answer.end == CUT and candidates:  # nobody knows how the last one ends
        candidates.pop()
        reasons.append("cut at the longest answer")
    if not parts or not any(parts):
        reasons.append("empty answer")
    good = []
    for candidate in candidates:
        if reason := _unfit(candidate):
            reasons.append(reason)
        else:
            good.append(candidate[0].upper() + candidate[1:])
    return good, reasons


def _unfit(instruction: str) -> str:
    if _damaged(instruction):
        return "damaged text"
    if instruction[0] in string.punctuation:
        return "begins with punctuation"
    count = words.count(instruction)
    if count < FEWEST_WORDS:
        return "too short"
    if count > MOST_WORDS:
        return "too long"
    if UNFIT_WORD.search(instruction):
        return "about what is no text"
    # Models add it to instructions that they have seen, whether it fits or not (the paper's code).
    return "write a program" if instruction.lower().startswith("write a program") else ""


def says_yes(answer: Completion) -> bool | None:
    """None where it is neither yes nor no."""
    word = re.match(r"\W*(yes|no)\b", answer.text, re.IGNORECASE) if answer.end != REFUSED else None
    return None if word is None else word[1].lower() == "yes"


def read_instances(answer: Completion, instruction: str, classification: bool) -> tuple[list[Instance], list[str]]:
    """Instances with different inputs, and the reasons why others are none."""
    if answer.end == REFUSED:
        return [], ["refused by the server"]
    if not answer.text.strip():
        return [], ["empty answer"]
    candidates = _labelled(answer.text) if classification else _examples(answer.text)
    reasons = []
    if answer.end == CUT:
        candidates.pop()
        reasons.append("cut at the longest answer")
    good: dict[str, Instance] = {}
    contradicted = set()
    for candidate in candidates:
        if reason := _unusable(candidate, instruction, classification):
            reasons.append(reason)
        elif (earlier := good.get(candidate.input)) is None:
            good[candidate.input] = candidate
        elif earlier.output == candidate.output or not candidate.input:
            reasons.append("an input that was there already")
        else:
            contradicted.add(candidate.input)
            reasons.append("two outputs to one input")
    reasons += ["two outputs to one input"] * len(contradicted)
    return [candidate for candidate in good.values() if candidate.input not in contradicted], reasons


def _examples(text: str) -> list[Instance]:
    """The instances of "Example 1\\nInput: ...\\nOutput: ..."; a text without any mark is an output."""
    instances = []
    for part in filter(str.strip, EXAMPLE.split(text)):
        first, *rest = OUTPUT.split(part, maxsplit=1)
        if rest:
            instances.append(_instance(first, rest[0]))
        else:  # an input that has no output is no instance
            instances.append(Instance("", "" if INPUT.match(part) else part.strip()))
    return instances or [Instance("", "")]


def _labelled(text: str) -> list[Instance]:
    """The instances of "Class label: ...\\nInput: ..."; the prompt ends with the first label's mark."""
    instances = []
    for part in filter(str.strip, LABEL.split(text)):
        label, _, rest = part.strip().partition("\n")
        instances.append(_instance(rest, label))
    return instances or [Instance("", "")]


def _instance(text: str, output: str) -> Instance:
    text = INPUT.sub("", text).strip()
    return Instance("" if NO_INPUT.fullmatch(text) else text, output.strip())


def _unusable(instance: Instance, instruction: str, classification: bool) -> str:
    if _damaged(instance.input + instance.output):
        return "damaged text"
    if not instance.output:
        return "no output"
    if instance.output in (instance.input, instruction):
        return "an output that repeats the question"
    if instance.input.endswith(":") or instance.output.endswith(":"):
        return "unfinished"
    return "a label without input" if classification and not instance.input else ""


def _damaged(text: str) -> bool:
    """What readers of conversations refuse."""
    return "\ufffd" in text or "\0" in text

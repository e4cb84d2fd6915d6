"""The reward functions that we ship: each gives every completion a number, from its text and the messages before it."""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from groundup.core.errors import UserError
from groundup.data.messages import text_of

Messages = Sequence[Mapping[str, Any]]
RewardFunction = Callable[..., Sequence[float]]  # (prompts: list of messages, completions: list of texts) -> a number each

SIGNS = str.maketrans("\N{MINUS SIGN}\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}", "-*/")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d{1,2}\b)?")
TERM = r"\(*\s*-?(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?\s*\)*"
# Only whole expressions: a part of 2 + 3x, 3 + 4 * x or 2^3 + 1 would be the value of another question.
BEHIND = r"(?![\w^]|[.,]\d|\s*[-+*/^%]\s*[\w(])"
EXPRESSION = re.compile(rf"(?<![\w.,^]){TERM}(?:\s*[-+*/]\s*{TERM}){{1,20}}{BEHIND}")
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def length(prompts: Sequence[Messages], completions: Sequence[str]) -> list[float]:
    """Words of each completion: what a reward must not be, to test the instruments of length."""
    return [float(len(text.split())) for text in completions]


def count_of(word: str) -> RewardFunction:
    """How often a word, or any other text, occurs in each completion."""

    def count(prompts: Sequence[Messages], completions: Sequence[str]) -> list[float]:
        return [float(text.count(word)) for text in completions]

    return count


def arithmetic(prompts: Sequence[Messages], completions: Sequence[str]) -> list[float]:
    """1 where the last number of the completion is the value of the last expression of the question, as 3 * (4 + 5); else 0.

    A question without one earns nothing. Raises UserError where no question has one.
    """
    expected = [value_of(text_of(messages[-1])) for messages in prompts]
    if expected and all(value is None for value in expected):
        raise UserError("none of the questions has an expression such as 12 + 7, so no answer can be right")
    return [
        float(value is not None and last_number(text) == value)
        for value, text in zip(expected, completions, strict=True)
    ]


def last_number(text: str) -> Fraction | None:
    """The last number that a text has, 1,000 being a thousand; None without one, or with one of over 60 digits."""
    numbers = NUMBER.findall(text.translate(SIGNS))
    return Fraction(numbers[-1].replace(",", "")) if numbers and len(numbers[-1]) <= 60 else None


def value_of(question: str) -> Fraction | None:
    """The exact value of the last expression of a question; None where it has none, or that has no value."""
    question = question.translate(SIGNS)
    expressions = [*EXPRESSION.finditer(question)]
    if not expressions or question[: expressions[-1].start()].rstrip()[-1:] in (*"+-*/^%",):
        return None
    text = expressions[-1][0].strip().replace(",", "")
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, text: str) -> Fraction:
    """Exact, so numbers are read from the `text`: Python's own have 17 digits."""
    if isinstance(node, ast.Constant):
        return Fraction(ast.get_source_segment(text, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, text)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left, text), _value(node.right, text))
    raise ValueError(f"{type(node).__name__} is no arithmetic")

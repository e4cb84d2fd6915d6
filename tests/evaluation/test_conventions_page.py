"""The question that docs/conventions.md works by hand: one model, right by one rule and wrong by two."""

import math
import re
from pathlib import Path

import pytest

from groundup.evaluation.scoring import CONVENTIONS

PAGE = Path(__file__).parents[2] / "docs" / "conventions.md"
# Venus, Mercury, Mars, Earth; the right one is Mercury.
LETTERS = [math.log(0.20), math.log(0.25), math.log(0.05), math.log(0.05)]
TEXTS = [-2.00, -3.50, -2.10, -1.90]
RECORD = {
    "answer": 1,
    "letters": LETTERS,
    "listed_answers": [letter + text for letter, text in zip(LETTERS, TEXTS, strict=True)],
    "letter_of_all": -1,  # " The" has 0.30
    "generated": -1,
}


@pytest.mark.parametrize("rule,chosen,right", [
    ("letter", 1, True), ("generated letter", -1, False), ("letter of vocabulary", -1, False), ("listed answer", 0, False),
])  # fmt: skip
def test_the_three_rules_by_hand(rule, chosen, right):
    assert CONVENTIONS[rule](RECORD) == chosen and (chosen == RECORD["answer"]) == right


def test_the_page_has_these_numbers():
    text = PAGE.read_text(encoding="utf-8").replace("−", "-")
    for value in RECORD["listed_answers"]:
        assert f"{value:.2f}" in text
    rows = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 8 and ("llama-65b", "63.7", "48.8", "63.6", "14.9") in rows
    for _, *figures, spread in rows:
        assert float(spread) == pytest.approx(max(map(float, figures)) - min(map(float, figures)))

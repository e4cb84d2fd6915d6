from hypothesis import given
from hypothesis import strategies as st

from groundup.core.table import table
from groundup.core.text import printable
from groundup.pipeline.summary import summary


def test_numbers_stand_below_each_other():
    assert table(("step", "seconds"), [("base", "9"), ("evaluation", "1,000")]).splitlines() == [
        "step         seconds", "────────────────────", "base               9", "evaluation     1,000"
    ]  # fmt: skip


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=4))
def test_cells_are_text(rows):
    shown = table(("a", "b"), rows)
    assert printable(shown) == shown and len(shown.split("\n")) >= 2 + len(rows)
    assert "[b]x[/b]" in table(("a",), [("[b]x[/b]",)])


def test_a_step_without_figures_one_that_was_skipped_and_one_with_many():
    figures = {"base": {"tokens": 12345, "loss": {"first": 2.34567, "none": None}}, "sft": {"skipped": "no questions"},
               "long": {f"figure_{n}": n for n in range(99)}, "empty": {"accuracy": None}}  # fmt: skip
    shown = summary({"pages": 75.0, "base": 1.4, "sft": 0.0, "long": 1.0, "empty": 2.0}, figures)
    lines = {line.split()[0]: line for line in shown.splitlines() if line[:1].isalpha()}
    assert lines["pages"].split() == ["pages", "1m15s"] and lines["empty"].split() == ["empty", "2s"]
    assert lines["base"].endswith("tokens 12,345; loss first 2.35") and lines["sft"].endswith("skipped no questions")
    assert shown.count("figure ") < 20 and lines["all"].split() == ["all", "1m19s"]

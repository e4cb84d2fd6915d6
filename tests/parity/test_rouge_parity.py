"""ROUGE-L as the `rouge_score` package has it, of ASCII texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.posttraining.rouge import rouge_l

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the `test` extra")
texts = st.lists(st.sampled_from(["the", "The", "cat's", "on-the", "mat", "2.5", "_x_", "...", "a"]), max_size=15).map(" ".join)


@settings(max_examples=50)
@given(texts, texts)
def test_scores_are_those_of_rouge_score(first, second):
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(first, second)["rougeL"].fmeasure
    assert rouge_l(first, second) == pytest.approx(theirs, abs=1e-12)

from pathlib import Path

import pytest

from groundup.core.errors import UserError
from groundup.evaluation.suite import compare_predictors


@pytest.mark.parametrize("held_out", [[], [{"id": "a", "text": "longer than that", "domain": "web"}]])
def test_without_a_document_to_judge_by_it_says_what_to_change(toy_decoder, toy_tokenizer, held_out):
    with pytest.raises(UserError, match=rf"none of {len(held_out)} held-out documents fits 9 bytes; raise"):
        compare_predictors(toy_decoder(), toy_tokenizer, held_out, Path("nowhere"), 9, 0)

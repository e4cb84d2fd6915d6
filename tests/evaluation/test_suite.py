from pathlib import Path

import numpy as np
import pytest

from groundup.core.errors import UserError
from groundup.data import token_files
from groundup.evaluation.suite import compare_predictors


@pytest.mark.parametrize("held_out", [[], [{"id": "a", "text": "longer than that", "domain": "web"}]])
def test_without_a_document_to_judge_by_it_says_what_to_change(toy_decoder, toy_tokenizer, held_out):
    with pytest.raises(UserError, match=rf"none of {len(held_out)} held-out documents is that short; raise"):
        compare_predictors(toy_decoder(), toy_tokenizer, held_out, Path("nowhere"), 9, 0)


def test_what_a_model_is_ahead_is_measured_on_the_same_documents(toy_decoder, toy_tokenizer, tmp_path):
    """A model of a domain alone has the interval of the whole; the point lies in it, as does the difference of the means."""
    texts = ["the path returns the file", "def it", "the file " * 9, "it returns the path of the file", "function"]
    held_out = [{"id": str(n), "text": text, "domain": "ab"[n % 2]} for n, text in enumerate(texts)]
    ids = [np.array([toy_tokenizer.end_of_text, *toy_tokenizer.encode(text)]) for text in texts]
    token_files.write(tmp_path / "train", ids, np.uint16)
    found = compare_predictors(toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, held_out, tmp_path, 9999, 0)
    assert found["ahead_by_domain"].keys() == {"a", "b"} == found["by_domain"].keys()
    for values, ahead in [(found["overall"], found["ahead"])] + [
        (found["by_domain"][domain], found["ahead_by_domain"][domain]) for domain in "ab"
    ]:
        for name, (low, high) in ahead.items():
            assert low <= values[name] - values["model"] <= high < 0  # it was never trained, and they have seen these
    one = [row | {"domain": "a"} for row in held_out]
    alone = compare_predictors(toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, one, tmp_path, 9999, 0)
    assert alone["ahead_by_domain"] == {"a": alone["ahead"]}

"""gigatoken gives our ids, where it is installed."""

import numpy as np
import pytest

from groundup.tokenizer import encode
from groundup.tokenizer.bpe import count_pretokens, train
from groundup.tokenizer.tokenizer import Tokenizer


def test_gigatoken_is_chosen_and_gives_our_ids():
    pytest.importorskip("gigatoken", reason="gigatoken is not installed")
    texts = [*encode.HARD, "the cat and the hat 12345\n\n    return 漢字 🙂 " * 50, "Donaudampfschifffahrtsgesellschaft" * 2000]
    tokenizer = Tokenizer.from_merges(train(count_pretokens(texts), 500))
    assert encode.choose(tokenizer, texts)[0] == "gigatoken"
    found = encode._gigatoken(tokenizer)(texts)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(tokenizer.encode_batch(texts), found, strict=True))

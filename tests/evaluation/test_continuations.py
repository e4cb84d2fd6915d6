"""Where a continuation begins: no choice is certain because it shares a token with its context."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.evaluation.suite import continuations, encode_pair
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = ["Question: what is it? Answer: A", "Answer: path", "the  pathology of a path\n\n  B", "1 2 3 ab abc abcd"]
TOKENIZER = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(TEXTS * 9), 330))

pieces = st.text(st.sampled_from("Answer: pathB\n\t12é "), max_size=9)


@given(pieces, pieces.filter(bool))
@example("Answer: ", "A")
@example("the pat", "h")
@example(" ", " ")
def test_nothing_is_lost_at_the_border_and_nothing_is_certain(context, continuation):
    before, after = encode_pair(TOKENIZER, context, continuation)
    kept = context.rstrip()
    assert before == [TOKENIZER.end_of_text, *TOKENIZER.encode(kept)]
    assert after and TOKENIZER.decode(after) == context[len(kept) :] + continuation
    together = TOKENIZER.encode(context + continuation)
    if [*before[1:], *after] != together:  # a token spans the border
        assert together[: len(before) - 1] != before[1:] and after == TOKENIZER.encode(context[len(kept) :] + continuation)


def test_white_space_belongs_to_the_continuation(toy_decoder):
    model = toy_decoder(vocab_size=TOKENIZER.size)
    apart, together = continuations(model, TOKENIZER, [("Answer: ", "A"), ("Answer:", " A")])
    assert apart == together < 0
    assert TOKENIZER.encode("the path")[-1:] == TOKENIZER.encode(" path")  # one token, which spans the border below
    [spanning] = continuations(model, TOKENIZER, [("the pat", "h")])
    assert spanning < 0
    with pytest.raises(UserError, match="a continuation is empty"):
        continuations(model, TOKENIZER, [("Answer:", "")])

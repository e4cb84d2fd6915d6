"""OASST's trees: of each one conversation, along the best ranked replies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.data.conversations import conversation_of, format_of
from groundup.data.messages import BadRow
from groundup.data.preferences import prompt_of


def said(role, text, *replies, **more):
    return {"role": role, "text": text, "replies": list(replies), **more}


TREE = said(
    "prompter", "a?",
    said("assistant", "poor", rank=1),
    said("assistant", "unranked"),
    said("assistant", "gone", deleted=True, rank=-1),
    said("assistant", "best", said("prompter", "b?", said("assistant", "end", said("prompter", "asked in vain"))), rank=0),
)  # fmt: skip


def test_the_best_ranked_path_up_to_the_last_answer():
    row = {"message_tree_id": "1", "prompt": TREE}
    assert format_of(row) == "OASST tree"
    found = [(one.role, one.content) for one in conversation_of(row).messages]
    assert found == [("user", "a?"), ("assistant", "best"), ("user", "b?"), ("assistant", "end")]
    assert [one.content for one in prompt_of(row)] == ["a?", "best", "b?"]


@pytest.mark.parametrize("prompt, why", [
    (said("prompter", "nobody answers"), "the last message is not the assistant's"),
    ({"role": "prompter", "text": "a", "replies": "b"}, "no tree of messages"),
    (said("prompter", "a", "b"), "no tree of messages"),
    (said("prompter", 7, said("assistant", "b")), "content that is no text"),
    (said("judge", "a", said("assistant", "b")), "unknown role"),
])  # fmt: skip
def test_a_tree_that_is_none_is_a_bad_row(prompt, why):
    with pytest.raises(BadRow) as refused:
        conversation_of({"prompt": prompt})
    assert why in (refused.value.reason, str(refused.value))


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "text", "replies", "rank", "deleted"]), inner, max_size=5
    ),
)  # fmt: skip


@given(values)
def test_whatever_stands_in_a_tree_is_a_conversation_or_a_bad_row(replies):
    try:
        found = conversation_of({"prompt": {"role": "prompter", "text": "a", "replies": replies}})
    except BadRow:
        return
    assert found.messages[-1].role == "assistant"

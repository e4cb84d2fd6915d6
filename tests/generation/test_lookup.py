"""Drafts are what followed before, and what is said with them is what is said without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.generation import engine, prompt_lookup
from groundup.generation.decoding import Decoding
from groundup.generation.engine import Sampling, generate
from groundup.generation.prompt_lookup import MIN_DRAFT, PromptLookup, drafts
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, DecoderConfig


def test_a_draft_is_what_followed_the_last_tokens_before():
    row = PromptLookup([1, 2, 3, 4, 5, 9, 3, 4, 6, 7, 2, 3, 4])
    assert row.promising() == MIN_DRAFT
    assert row.propose(3) == [5, 9, 3]  # after 2 3 4; after 3 4 alone it was 6


def test_two_tokens_do_where_three_are_new_and_a_circle_is_followed_around():
    row = PromptLookup([1, 2, 8, 7, 1, 2])
    assert row.promising() == MIN_DRAFT and row.propose(6) == [8, 7, 1, 2, 8, 7]


def test_nothing_is_promised_where_the_end_is_new():
    assert PromptLookup([1]).promising() == PromptLookup([1, 2]).promising() == PromptLookup([1, 2, 3, 4, 1]).promising() == 0
    assert drafts([PromptLookup([1, 2, 3])], 8) == [[]]


def test_drafts_grow_with_what_was_right_and_shrink_with_what_was_not():
    row = PromptLookup([1, 2] * 3)
    lengths = []
    for right in (2, 4, 8, 3, 0):
        lengths.append(row.promising())
        draft = row.propose(lengths[-1])
        row.text += [*draft[:right], draft[right] if right < len(draft) else row.text[-2]]
    assert lengths == [2, 4, 8, 16, 3] and row.promising() == MIN_DRAFT


def test_rows_draft_as_far_as_their_mean_and_no_further_than_there_is_room(monkeypatch):
    circle, new = [1, 2] * 4, [3, 4, 5]
    assert drafts([PromptLookup(circle), PromptLookup(new)], 9) == [[1], [3]]
    assert [len(one) for one in drafts([PromptLookup(circle)] * 3, 1)] == [1, 1, 1]
    monkeypatch.setattr(prompt_lookup, "BATCH_TOKENS", 5)
    assert drafts([PromptLookup(circle)] * 3, 9) == [[]] * 3


def tiny(seed, **shape):
    """A model of eight tokens, whose answers go in circles sooner or later."""
    sizes = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = Decoder(DecoderConfig(**sizes | shape, head_dim=4, intermediate_size=24, max_position_embeddings=96))
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model.eval()


def plainly(model, prompts, ends, sampling):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "drafts", lambda rows, most: [[]] * len(rows))
        return generate(model, prompts, ends, sampling, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=20), min_size=1, max_size=6),
    st.sets(st.integers(0, 7), max_size=2),
    st.integers(1, 48),
    st.sampled_from([{}, {"num_key_value_heads": 4}, {"model_type": "llama"}]),
)
def test_the_same_is_said_with_drafts_and_without(seed, prompts, ends, max_tokens, shape):
    """Ends and the number of tokens are met inside drafts, too; rows leave at different times."""
    model, sampling = tiny(seed, **shape), Sampling(max_tokens, temperature=0)
    told = [[] for _ in prompts]
    answers = generate(model, prompts, sorted(ends), sampling, 0, lambda row, token: told[row].append(token))
    assert answers == told == plainly(model, prompts, sorted(ends), sampling)


def test_drafts_save_passes_and_are_for_the_models_choice_alone(monkeypatch):
    passes = []

    def counted(state, tokens_BT, step=Decoding.decode):
        passes.append(tokens_BT.shape[1])
        return step(state, tokens_BT)

    monkeypatch.setattr(Decoding, "decode", counted)
    model = tiny(0)
    for prompts in ([[1, 2, 3]], [[1, 2, 3], [4, 5]]):
        passes.clear()
        generate(model, prompts, [], Sampling(48, temperature=0), 0)
        assert len(passes) < 44 and max(passes) > MIN_DRAFT
        passes.clear()
        generate(model, prompts, [], Sampling(48, temperature=1), 0)
        assert passes == [1] * 47

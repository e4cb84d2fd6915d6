"""Continuations whose contexts share beginnings: the scores are those of each alone, for any order and batch size."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.evaluation import continuations
from groundup.evaluation.continuations import ScoringRequest
from groundup.model import architectures, likelihood
from groundup.model.decoder import Decoder

CLOSE = 1e-5


def alone(model, request):
    """By the one likelihood, and by the logits for what is likeliest."""
    nats = likelihood.score(model, [request.ids])[0][request.start - 1 :]
    with torch.no_grad():
        found = model(torch.tensor([request.ids[:-1]]))[0].argmax(-1).tolist()[request.start - 1 :]
    return float(nats.sum(dtype=np.float64)), found == list(request.ids[request.start :]), found[0]


def agree(model, requests, **options):
    found = continuations.score(model, requests, **options)
    for one, request in zip(found, requests, strict=True):
        nats, greedy, likeliest = alone(model, request)
        assert one.nats == pytest.approx(nats, rel=1e-6, abs=CLOSE) and (one.greedy, one.likeliest) == (greedy, likeliest)
    return found


def examination(questions=6, shots=40, seed=0):
    """As few-shot questions are: a long beginning, a question, letters that follow it, answers of several tokens."""
    numbers = np.random.default_rng(seed)
    beginning = (49, *numbers.integers(0, 48, shots).tolist())
    requests = []
    for length in numbers.integers(1, 9, questions):
        context = (*beginning, *numbers.integers(0, 48, length).tolist())
        requests += [ScoringRequest((*context, letter), len(context)) for letter in range(4)]
        requests += [ScoringRequest((*context, letter, 7, *range(letter, 3)), len(context)) for letter in range(4)]
        requests.append(ScoringRequest((49, int(length), 5), 1))  # without a context but the first token
    return requests


@pytest.fixture(scope="module")
def model(toy_decoder):
    return toy_decoder(seed=3)


def test_scores_are_those_of_each_alone(model):
    agree(model, examination())


def test_greedy_is_told(model):
    [first] = continuations.score(model, [ScoringRequest((1, 2, 3), 2)])
    [likeliest] = continuations.score(model, [ScoringRequest((1, 2, first.likeliest), 2)])
    assert likeliest.greedy and not first.greedy and likeliest.nats > first.nats


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_batch_size_and_order(model, size):
    requests = examination(seed=1)
    reference = continuations.score(model, requests, 5)
    order = np.random.default_rng(size).permutation(len(requests))
    found = continuations.score(model, [requests[n] for n in order], size)
    for one, n in zip(found, order, strict=True):
        assert one.nats == pytest.approx(reference[n].nats, abs=CLOSE) and one[1:] == reference[n][1:]


token_lists = st.lists(st.integers(0, 3), min_size=2, max_size=60)


@settings(max_examples=60)
@given(st.lists(token_lists, min_size=1, max_size=12), st.sampled_from([1, 3, 64]), st.randoms(use_true_random=False))
def test_any_requests(model, some, size, chance):
    """Few different tokens, so that they share beginnings of every length."""
    agree(model, [ScoringRequest(tuple(ids), chance.randint(1, len(ids) - 1)) for ids in some], batch_size=size)


def test_what_is_shared_goes_through_the_model_once(model, monkeypatch):
    """41 tokens before each of 6 questions, and 8 continuations of each: computed apart they would be 54 x 45."""
    computed = []
    through = continuations._TreeScorer._layers

    def counted(self, ids, *rest):
        computed.append(len(ids))
        return through(self, ids, *rest)

    monkeypatch.setattr(continuations._TreeScorer, "_layers", counted)
    requests = examination()
    continuations.score(model, requests)
    assert 41 in computed  # the beginning, once
    assert sum(computed) < sum(len(ids) for ids, _ in requests) / 10


@pytest.mark.parametrize("name", ["lstm", "convolution", "patches", "experts"])
def test_other_architectures(name):
    model, _ = architectures.build(name, 1, 260, 64, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    agree(model, examination(3, 36))
    assert isinstance(model, Decoder) == (name == "experts")


@pytest.mark.parametrize("mask", [None, "all", "branches"])
def test_attention_by_hand_is_that_of_the_processor(mask, monkeypatch):
    """Other devices than the CPU have no operation that gives the normaliser too."""
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    given = torch.zeros(2, 1, 7, 7).masked_fill(torch.rand(2, 1, 7, 7).triu(1) > 0, -torch.inf) if mask == "branches" else None
    out, norms = continuations._attention(q, k, v, given, mask == "all")
    other, other_norms = continuations._plain_attention(q, k, v, given, mask == "all")
    torch.testing.assert_close(out, other)
    torch.testing.assert_close(norms, other_norms)


def test_a_context_that_is_filled_to_its_end(model):
    longest = model.config.max_position_embeddings
    ids = tuple(np.arange(longest + 1) % 50)
    agree(model, [ScoringRequest(ids, longest), ScoringRequest(ids, 1)])
    with pytest.raises(ValueError, match="tokens"):
        continuations.score(model, [ScoringRequest((*ids, 1), 3)])


def test_numbers_that_are_not_finite(toy_decoder):
    model = toy_decoder()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        continuations.score(model, [ScoringRequest((1, 2, 3), 2)])


def test_grouped_heads_and_stretched_positions(toy_decoder):
    model = toy_decoder(num_key_value_heads=4)
    agree(model, examination(4))
    stretched = dataclasses.replace(model.config, rope_scaling={"rope_type": "linear", "factor": 2.0})
    other = Decoder(stretched)
    other.load_state_dict(model.state_dict())
    agree(other, examination(4))

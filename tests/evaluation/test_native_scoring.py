"""Scores by kernels: those of PyTorch, and the same bits for any batch size, order and company."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup import kernels
from groundup.core.errors import UserError
from groundup.evaluation import continuations
from groundup.evaluation.continuations import ScoringRequest
from groundup.generation.native_steps import Steps
from groundup.model.architectures import build

CLOSE = 1e-5
SHAPES = {
    "six heads to three": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32},
    "six heads to one, tied": {
        "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True,
    },
    "qwen2, biases": {"model_type": "qwen2", "head_dim": 64},
    "llama, heads of 96": {"model_type": "llama", "head_dim": 96},
}  # fmt: skip
ODD = {"hidden_size": 48, "intermediate_size": 80, "vocab_size": 37}

pytestmark = pytest.mark.float32_kernels


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request, toy_decoder):
    return toy_decoder(seed=2, scale=0.15, **ODD, **request.param)


@pytest.fixture(scope="module")
def small(toy_decoder):
    return toy_decoder(seed=2, scale=0.15, **ODD, head_dim=32)


def by_pytorch(model, requests, batch_size=64):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuations, "native_steps", lambda _: None)
        return continuations.score(model, requests, batch_size)


def examination(questions=6, shots=37, seed=0):
    """As few-shot questions are; answers that branch within answers, and some that have nothing before them."""
    numbers = np.random.default_rng(seed)
    beginning = (36, *numbers.integers(0, 36, shots).tolist())
    requests = []
    for length in numbers.integers(1, 9, questions):
        context = (*beginning, *numbers.integers(0, 36, length).tolist())
        requests += [ScoringRequest((*context, letter), len(context)) for letter in range(4)]
        requests += [ScoringRequest((*context, 9, letter, 7, *range(letter, 3)), len(context)) for letter in range(4)]
        requests.append(ScoringRequest((36, int(length), 5, 1), 1))
    return requests


def agree(model, requests, batch_size=64):
    ours, theirs = continuations.score(model, requests, batch_size), by_pytorch(model, requests)
    for one, other in zip(ours, theirs, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=CLOSE, rel=1e-6) and one[1:] == other[1:]
    return ours


def test_scores_are_those_of_pytorch(model):
    agree(model, examination())


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_same_bits_for_any_batch_size_and_order(model, size):
    requests = examination(seed=1)
    reference = continuations.score(model, requests, 5)
    order = np.random.default_rng(size).permutation(len(requests))
    assert continuations.score(model, [requests[n] for n in order], size) == [reference[n] for n in order]


token_lists = st.lists(st.integers(0, 3), min_size=2, max_size=60)


@settings(max_examples=40, deadline=None)
@given(st.lists(token_lists, min_size=1, max_size=12), st.sampled_from([1, 3, 64]), st.randoms(use_true_random=False))
def test_any_requests_have_the_bits_that_they_have_alone(small, some, size, chance):
    """Few different tokens, so that they share beginnings of every length."""
    requests = [ScoringRequest(tuple(ids), chance.randint(1, len(ids) - 1)) for ids in some]
    ours = agree(small, requests, size)
    assert ours == [continuations.score(small, [one])[0] for one in requests]


def test_the_same_bits_for_any_number_of_threads(small):
    requests, before = examination(seed=2), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        reference = continuations.score(small, requests)
        torch.set_num_threads(3)
        assert continuations.score(small, requests) == reference
    finally:
        torch.set_num_threads(before)


def test_what_is_shared_goes_through_the_model_once(small, monkeypatch):
    """38 tokens before each of 6 questions, and 8 continuations of each: computed apart they would be 54 x 43."""
    computed, through = [], Steps.likelihoods

    def counted(self, ids, *rest):
        computed.append(len(ids))
        return through(self, ids, *rest)

    monkeypatch.setattr(Steps, "likelihoods", counted)
    requests = examination()
    continuations.score(small, requests)
    assert 38 in computed  # the beginning, once
    assert sum(computed) < sum(len(ids) for ids, _ in requests) / 8


def test_what_the_kernels_do_not_compute_goes_by_pytorch(small, toy_decoder, monkeypatch):
    experts, _ = build("experts", 1, 260, 64, seed=0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(std=0.1)
    monkeypatch.setattr(continuations._NativeTreeScorer, "likelihoods", None)
    for other in (experts, toy_decoder(seed=1)):  # heads of 8 channels
        continuations.score(other, examination(2))
    with pytest.raises(TypeError):
        continuations.score(small, examination(2))
    monkeypatch.setenv(kernels.SWITCH, "none")
    kernels.float32_or_reason.cache_clear()
    try:
        continuations.score(small, examination(2))
    finally:
        kernels.float32_or_reason.cache_clear()


def test_numbers_that_are_not_finite(toy_decoder):
    model = toy_decoder(**ODD, head_dim=32)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        continuations.score(model, [ScoringRequest((1, 2, 3), 2)])


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (ValueError, {"ids_N": torch.tensor([0, 1, 2]).int()}),
        (ValueError, {"slots_N": torch.tensor([0, 1])}),
        (ValueError, {"parents_N": torch.tensor([[-1, 0, 0]])}),
        (ValueError, {"targets_A": torch.tensor([1])}),
        (ValueError, {"context_A": torch.tensor([0.0, 1.0])}),
        (IndexError, {"ids_N": torch.tensor([0, 1, 37])}),
        (IndexError, {"slots_N": torch.tensor([0, 1, 20])}),
        (IndexError, {"parents_N": torch.tensor([-1, 0, 2])}),
        (IndexError, {"parents_N": torch.tensor([-2, 0, 0])}),
        (IndexError, {"positions_N": torch.tensor([0, 1, 2])}),
        (IndexError, {"wanted_M": torch.tensor([2, 1])}),
        (IndexError, {"context_A": torch.tensor([0, 2])}),
        (IndexError, {"targets_A": torch.tensor([0, 37])}),
        (IndexError, {"targets_A": torch.tensor([-1, 0])}),
    ],
)
@torch.inference_mode()
def test_tensors_of_another_kind_or_shape_raise(small, error, wrong):
    plan = [([], [[continuations._Row([0] * 20, [], [], [])]])]
    state = continuations._NativeTreeScorer(small, plan, continuations.native_steps(small))
    good = {
        "ids_N": torch.tensor([0, 1, 2]), "positions_N": torch.tensor([0, 1, 1]), "slots_N": torch.tensor([0, 1, 2]),
        "parents_N": torch.tensor([-1, 0, 0]), "rope_cache": state.rope_cache, "cache": state.cache,
        "wanted_M": torch.tensor([1, 2]), "context_A": torch.tensor([1, 0]), "targets_A": torch.tensor([3, 4]),
    }  # fmt: skip
    state.steps.likelihoods(**good)
    with pytest.raises(error):
        state.steps.likelihoods(**good | wrong)

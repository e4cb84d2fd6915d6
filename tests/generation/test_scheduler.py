"""Requests that join and leave one batch get what each would get alone."""

import time
from ctypes import c_int
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.generation.decoding import Decoding
from groundup.generation.engine import Sampling, generate
from groundup.generation.native_steps import Interrupted
from groundup.generation.request import Request, RequestSampling
from groundup.generation.scheduler import PART, Full, Scheduler
from groundup.model.convolution import Convolution, ConvolutionConfig
from groundup.model.decoder import Decoder, DecoderConfig, with_experts
from groundup.model.likelihood import score
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.patches import PatchedBytes, PatchesConfig


class Asked:
    """A request and what came of it."""

    def __init__(self, prompt, max_tokens=12, ends=(), seed=0, stop_after=None, logprobs=None, prompt_logprobs=False, **sampling):
        self.tokens, self.prompt_tokens, self.reason, self.what = [], [], None, ""
        self.stop_after = stop_after
        self.request = Request(
            prompt, RequestSampling(max_tokens=max(max_tokens, 1), **{"temperature": 0, **sampling}), frozenset(ends), seed,
            self.token, self.end, max_tokens, logprobs, prompt_logprobs, self.prompt_tokens.extend,
        )  # fmt: skip

    def token(self, token):
        assert self.reason is None
        self.tokens.append(token)
        return len(self.tokens) == self.stop_after

    def end(self, reason, what):
        assert self.reason is None
        self.reason, self.what = reason, what

    @property
    def ids(self):
        return [token.id for token in self.tokens]


def run(scheduler, *asked):
    scheduler.submit([one.request for one in asked])
    while scheduler.busy:
        scheduler.step()
    return [one.ids for one in asked]


def prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(50, (length,), generator=generator).tolist() for length in lengths]


DENSE = DecoderConfig(50, 32, 2, 4, 2, 8, 48, 64)
MODELS = {
    "dense": Decoder(DENSE),
    "experts": Decoder(with_experts(DENSE, 4, 2)[0]),
    "lstm": LSTM(LSTMConfig(50, 32, 2, 64)),
    "convolution": Convolution(ConvolutionConfig(50, 32, 3, 3, 64)),
    "patches": PatchedBytes(
        PatchesConfig(3, 64, replace(DENSE, vocab_size=1), replace(DENSE, hidden_size=24, num_hidden_layers=1))
    ),
}


@pytest.fixture(scope="module")
def toy_models():
    """Every parameter is random, so nothing cancels by accident."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (one for model in MODELS.values() for one in model.parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)
    return MODELS


@pytest.fixture(scope="module", params=[*MODELS])
def model(request, toy_models):
    return toy_models[request.param]


def test_greedy_is_the_engines_whatever_the_company(model):
    """More requests than slots, of lengths that end at different steps."""
    some = prompts(3, 20, 1, 9, 30, 5, 12)
    alone = [generate(model, [one], [], Sampling(max_tokens=7 + number, temperature=0), 0)[0] for number, one in enumerate(some)]
    asked = [Asked(one, max_tokens=7 + number) for number, one in enumerate(some)]
    assert run(Scheduler(model, slots=3), *asked) == alone
    assert [one.reason for one in asked] == ["length"] * len(asked)


def test_a_long_prompt_is_read_in_parts_beside_the_others(toy_decoder):
    model = toy_decoder(seed=3, max_position_embeddings=1024)
    long, short = prompts(2 * PART + 40, 5)
    scheduler = Scheduler(model, slots=4)
    first, second = Asked(short, max_tokens=30), Asked(long, max_tokens=5)
    scheduler.submit([first.request])
    scheduler.step()
    scheduler.submit([second.request])
    for _ in range(3):
        scheduler.step()
    assert len(first.ids) > 3 and not second.ids  # nobody waits for a long prompt
    while scheduler.busy:
        scheduler.step()
    for one, prompt, count in ((first, short, 30), (second, long, 5)):
        assert one.ids == generate(model, [prompt], [], Sampling(max_tokens=count, temperature=0), 0)[0]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_sample_depends_on_its_seed_alone(toy_models, data):
    model = toy_models["dense"]
    sampling = data.draw(st.fixed_dictionaries({
        "temperature": st.sampled_from([0, 0.7, 1.5]), "top_p": st.sampled_from([1.0, 0.8]), "top_k": st.sampled_from([0, 5]),
        "min_p": st.sampled_from([0.0, 0.1]), "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]), "logit_bias": st.sampled_from([{}, {7: 5.0}]),
    }))  # fmt: skip
    prompt, *others = prompts(6, 3, 14, 8)
    seed = data.draw(st.integers(0, 5))
    [alone] = run(Scheduler(model, slots=4), Asked(prompt, seed=seed, **sampling))
    company = [Asked(one, max_tokens=3 + number, seed=number, temperature=1.0) for number, one in enumerate(others)]
    place = data.draw(st.integers(0, 3))
    asked = [*company[:place], Asked(prompt, seed=seed, **sampling), *company[place:]]
    assert run(Scheduler(model, slots=data.draw(st.integers(1, 4))), *asked)[place] == alone


def test_ends_stops_and_cancelling_free_the_slot(toy_models):
    model, scheduler = toy_models["dense"], Scheduler(toy_models["dense"], slots=2)
    [answer] = run(scheduler, Asked(prompts(5)[0], max_tokens=10))
    ended = Asked(prompts(5)[0], max_tokens=10, ends=[answer[3]])
    run(scheduler, ended)
    assert (ended.ids, ended.reason) == (answer[: answer.index(answer[3]) + 1], "stop")
    stopped = Asked(prompts(5)[0], max_tokens=10, stop_after=2)
    run(scheduler, stopped)
    assert (stopped.ids, stopped.reason) == (answer[:2], "stop")
    leaving, waiting = [Asked(prompts(5)[0], max_tokens=50) for _ in range(2)], Asked(prompts(4)[0], max_tokens=2)
    scheduler.submit([one.request for one in (*leaving, waiting)])
    scheduler.step()
    leaving[0].request.cancel()
    scheduler.step()
    assert leaving[0].reason == "cancelled" and len(waiting.ids) > 0  # its slot is another's within a step
    leaving[1].request.cancel()
    while scheduler.busy:
        scheduler.step()
    assert model.config and scheduler.counts["cancelled"] == 2


def test_the_place_of_one_that_left_while_it_waited_is_free_within_a_step(toy_models):
    scheduler = Scheduler(toy_models["dense"], slots=1, waiting=2)
    first, *left = [Asked(prompts(5)[0], max_tokens=30) for _ in range(3)]
    scheduler.submit([first.request])
    scheduler.step()
    scheduler.submit([one.request for one in left])
    with pytest.raises(Full):
        scheduler.submit([Asked(prompts(5)[0]).request])
    for one in left:
        one.request.cancel()
    scheduler.step()
    assert [one.reason for one in left] == ["cancelled"] * 2 and scheduler.counts["cancelled"] == 2 and first.reason is None
    later = Asked(prompts(5)[0], max_tokens=2)
    run(scheduler, later, Asked(prompts(5)[0]))
    assert (later.reason, first.reason) == ("length", "length")


@pytest.mark.parametrize(("length", "part"), [(9, PART), (1, PART), (9, 4), (8, 4)])  # a last part of one token has none after it
def test_log_probabilities_are_the_likelihoods(model, length, part, monkeypatch):
    monkeypatch.setattr("groundup.generation.scheduler.PART", part)
    [prompt] = prompts(length)
    asked = Asked(prompt, max_tokens=4, logprobs=3, prompt_logprobs=True)
    run(Scheduler(model, slots=2), asked)
    assert asked.prompt_tokens[0].logprob is None and [token.id for token in asked.prompt_tokens] == prompt
    expected = score(model, [prompt + asked.ids])[0]
    found = [token.logprob for token in (*asked.prompt_tokens[1:], *asked.tokens)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=0)
    for token in asked.tokens:
        assert len(token.top) == 3 and token.top[0] == (token.id, token.logprob)  # greedy: the same float
    only_read = Asked(prompt, max_tokens=0, logprobs=1, prompt_logprobs=True)
    run(Scheduler(model, slots=2), only_read)
    assert (len(only_read.prompt_tokens), only_read.ids, only_read.reason) == (length, [], "length")


def test_penalties_and_bias_by_hand(toy_models):
    """Checked against the definitions on logits that are known."""
    logits = torch.tensor([2.0, 1.5, -1.0, 0.5])
    one = Asked([0, 2], repetition_penalty=2.0).request
    assert one._penalised(logits).tolist() == [1.0, 1.5, -2.0, 0.5]
    one = Asked([0], presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: 9.0}).request
    for token in (1, 1, 2):
        one.add(token)
    assert one._penalised(logits).tolist() == [2.0, 0.25, -1.75, 9.5]
    kept = {Asked([0], temperature=1.0, min_p=0.5, seed=seed).request.choose(logits) for seed in range(60)}
    assert kept == {0, 1}  # exp(1.5 - 2) is .61 of the likeliest, exp(.5 - 2) .22


def test_a_broken_model_ends_its_requests_with_the_reason(toy_decoder):
    model = toy_decoder(seed=3)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    asked = Asked(prompts(5)[0])
    run(Scheduler(model, slots=2), asked)
    assert asked.reason == "error" and "not finite" in asked.what


def test_what_cannot_be_taken_is_refused(toy_models):
    scheduler = Scheduler(toy_models["dense"], slots=1, waiting=2)
    with pytest.raises(UserError, match="no token"):
        scheduler.submit([Asked([]).request])
    with pytest.raises(UserError, match="context is"):
        scheduler.submit([Asked(prompts(scheduler.length)[0], max_tokens=1).request])
    with pytest.raises(Full):
        scheduler.submit([Asked([1]).request for _ in range(3)])


def test_slots_fit_the_memory_for_the_cache(toy_models):
    scheduler = Scheduler(toy_models["dense"], slots=64, cache_mb=1)
    assert scheduler.slots < 64 and "requests at once instead of 64" in scheduler.decisions[0]


def by_kernels():
    model = Decoder(DecoderConfig(50, 32, 2, 2, 1, 32, 48, 64))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def test_who_comes_while_there_is_room_does_not_wait_for_the_step_at_work(monkeypatch):
    model, (first, second, third) = by_kernels(), prompts(5, 6, 7)
    alone = [run(Scheduler(model), Asked(prompt))[0] for prompt in (first, second, third)]
    scheduler, asked = Scheduler(model, slots=3), [Asked(first), Asked(second), Asked(third)]
    if not scheduler.state.steps:
        pytest.skip(scheduler.state.disabled)
    late, decode, happened = asked[1:], scheduler.state.decode, []

    def meanwhile(tokens_BT, stop=None):
        if late:  # the second interrupts a step, the third one that may not be interrupted again
            scheduler.submit([late.pop(0).request])
        happened.append((len(scheduler.running), None if stop is None else stop.value))
        return decode(tokens_BT, stop)

    monkeypatch.setattr(scheduler.state, "decode", meanwhile)
    assert run(scheduler, asked[0]) and [one.ids for one in asked] == alone
    assert happened[:3] == [(1, 1), (2, None), (3, 0)]
    assert scheduler.counts["steps"] == len(happened) - 1


def test_no_step_is_given_up_for_what_is_read_beside_the_next(monkeypatch):
    scheduler, (first, second) = Scheduler(by_kernels(), slots=3), prompts(5, 6)
    if not scheduler.state.steps:
        pytest.skip(scheduler.state.disabled)
    late, decode = [Asked(second, max_tokens=0, logprobs=0, prompt_logprobs=True)], scheduler.state.decode
    stops = []

    def meanwhile(tokens_BT, stop=None):
        if late:
            scheduler.submit([late.pop().request])
        stops.append(stop.value)
        return decode(tokens_BT, stop)

    monkeypatch.setattr(scheduler.state, "decode", meanwhile)
    run(scheduler, Asked(first, max_tokens=4))
    assert stops == [0, 0, 0]  # the first of the four tokens is the prompt's


def test_a_step_that_is_given_up_leaves_no_trace():
    state, other = (Decoding(by_kernels(), 2, 32) for _ in range(2))
    if not state.steps:
        pytest.skip(state.disabled)
    tokens = torch.tensor([[7], [9]])
    for one in (state, other):
        one.prefill(prompts(4, 6))
    with pytest.raises(Interrupted):
        state.decode(tokens, c_int(1))
    assert state.lengths == other.lengths
    assert torch.equal(state.decode(tokens, c_int(0)), other.decode(tokens))


def test_a_thread_serves_and_ends_what_is_left(toy_models):
    asked = [Asked(one, max_tokens=5) for one in prompts(4, 6)]
    with Scheduler(toy_models["dense"], slots=2) as scheduler:
        scheduler.submit([one.request for one in asked])
        for _ in range(500):
            if all(one.reason for one in asked):
                break
            time.sleep(0.02)
    assert [one.reason for one in asked] == ["length", "length"]
    with pytest.raises(Full):
        scheduler.submit([Asked([1]).request])


def test_a_step_that_fails_leaves_nobody_waiting(toy_models, monkeypatch):
    """Not those either whose prompts were being read."""

    def no_memory(*_):
        raise RuntimeError("no memory")

    with Scheduler(toy_models["dense"], slots=4) as scheduler:
        with monkeypatch.context() as broken:
            broken.setattr(scheduler.state, "prefill", no_memory)
            asked = [Asked(one, max_tokens=5) for one in prompts(4, 6)]
            scheduler.submit([one.request for one in asked])
            wait_for(lambda: all(one.reason for one in asked))
        assert {(one.reason, one.what) for one in asked} == {("error", "the server failed")}
        after = Asked([1, 2], max_tokens=5)
        scheduler.submit([after.request])
        wait_for(lambda: after.reason)
    assert after.reason == "length" and not scheduler.lookups


def wait_for(holds):
    for _ in range(500):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("did not come about in ten seconds")

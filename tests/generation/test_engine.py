import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.generation import decoding, engine
from groundup.generation.engine import Sampling, generate, pick, room

GREEDY = Sampling(max_tokens=20, temperature=0)


def some_prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(50, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def recomputed(model, prompt, ends, max_tokens):
    """Greedy, the whole sequence anew for every token."""
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 4, "tie_word_embeddings": True}, {"head_dim": 6}])
def test_batched_is_single_is_recomputed(toy_decoder, shape):
    model, prompts = toy_decoder(seed=3, **shape), some_prompts(1, 9, 4, 30, 17)
    alone = [generate(model, [prompt], [], GREEDY, seed=0)[0] for prompt in prompts]
    assert generate(model, prompts, [], GREEDY, seed=0) == alone
    assert alone == [recomputed(model, prompt, [], 20) for prompt in prompts]
    assert len({tuple(answer) for answer in alone}) > 1


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_tokens=20, top_k=5)])
def test_rows_beyond_the_memory_are_continued_part_by_part(toy_decoder, monkeypatch, sampling):
    """Of a published model 256 answers would take more keys and values than a machine holds."""
    model, prompts, made, told = toy_decoder(seed=3), some_prompts(1, 9, 4, 30, 17), [], []
    whole = generate(model, prompts, [], sampling, seed=0)
    row = 50 * decoding.cache_bytes(model)

    class Counted(decoding.Decoding):
        def __init__(self, model, rows, length):
            super().__init__(model, rows, length)
            made.append(self.cache.numel() * 4)

    monkeypatch.setattr(engine, "Decoding", Counted)
    for rows, parts in ((2, 3), (1, 5), (0.5, 5)):
        made.clear(), told.clear()
        monkeypatch.setattr(engine, "CACHE_BYTES", int(rows * row))
        found = generate(model, prompts, [], sampling, 0, lambda *one: told.append(one))
        assert len(made) == parts and max(made) <= max(rows, 1) * row
        assert [[token for number, token in told if number == place] for place in range(5)] == found
        assert generate(model, prompts, [], sampling, 0) == found
        assert sampling != GREEDY or found == whole


def test_weights_changed_between_calls_are_the_weights_used(toy_decoder):
    """As in training against rewards: changed in place, by an optimizer; or replaced."""
    model, other, prompts = toy_decoder(seed=3), toy_decoder(seed=4), some_prompts(5, 2)
    before = generate(model, prompts, [], GREEDY, seed=0)
    expected = generate(other, prompts, [], GREEDY, seed=0)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(value)
    assert generate(model, prompts, [], GREEDY, seed=0) == expected != before
    for parameter, value in zip(model.parameters(), toy_decoder(seed=3).parameters(), strict=True):
        parameter.data = value.data
    assert generate(model, prompts, [], GREEDY, seed=0) == before


def test_generating_leaves_a_model_that_can_be_trained(toy_decoder):
    model, ids = toy_decoder(seed=3), torch.tensor([[1, 2, 3]])
    generate(model, some_prompts(5, 2), [], GREEDY, seed=0)
    model(ids).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows_stop_at_their_own_ends(toy_decoder):
    model, prompts = toy_decoder(seed=3), some_prompts(1, 9, 4, 30, 17)
    free = generate(model, prompts, [], GREEDY, seed=0)
    ends = [free[0][3], free[2][10]]
    stopped = generate(model, prompts, ends, GREEDY, seed=0)
    assert stopped == [recomputed(model, prompt, ends, 20) for prompt in prompts]
    assert len({len(answer) for answer in stopped}) > 1
    for answer in stopped:
        assert (answer[-1] in ends or len(answer) == 20) and not set(answer[:-1]) & set(ends)


def test_tokens_are_told_as_they_come(toy_decoder):
    model, prompts = toy_decoder(seed=3), some_prompts(5, 2)
    told = [[], []]
    answers = generate(model, prompts, [7], Sampling(12), 4, lambda row, token: told[row].append(token))
    assert told == answers


def test_the_same_seed_gives_the_same_tokens(toy_decoder):
    model, prompts = toy_decoder(seed=3), some_prompts(5, 2, 8)
    torch.manual_seed(0)
    first = generate(model, prompts, [], Sampling(16), 4)
    torch.manual_seed(1)
    assert generate(model, prompts, [], Sampling(16), 4) == first
    assert generate(model, prompts, [], Sampling(16), 5) != first


def test_no_prompts(toy_decoder):
    assert generate(toy_decoder(), [], [], GREEDY, 0) == []


@pytest.mark.parametrize("max_tokens", [1, 20, 32, 70])
def test_a_prompt_is_never_cut(toy_decoder, monkeypatch, max_tokens):
    """What is left of it would be another question. Prompt and answer never outgrow the context: it was not trained there."""
    lengths = []

    def recording(model, rows, length):
        lengths.append(length)
        return decoding.Decoding(model, rows, length)

    monkeypatch.setattr(engine, "Decoding", recording)
    model = toy_decoder(seed=3)  # context 64
    most = room(model, max_tokens)
    assert most == 64 - min(max_tokens, 32)
    answers = generate(model, some_prompts(3, most), [], Sampling(max_tokens), 0)
    assert all(len(answer) == min(max_tokens, 32) for answer in answers) and lengths == [64]
    with pytest.raises(UserError, match=f"a prompt has {most + 1} tokens.* has room for {most}:"):
        generate(model, some_prompts(3, most + 1), [], Sampling(max_tokens), 0)


def drawn(logits, sampling, count=2000):
    rows = torch.tensor(logits).expand(count, -1)
    return pick(rows, sampling, torch.Generator().manual_seed(0))


def test_temperature():
    logits = [0.0, 1.0, 2.0]
    assert set(drawn(logits, Sampling(temperature=0)).tolist()) == {2}
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(torch.tensor(logits) / temperature, dim=0)
        found = torch.bincount(drawn(logits, Sampling(temperature=temperature)), minlength=3) / 2000
        assert torch.allclose(found, expected, atol=0.04)


@settings(max_examples=60)
@given(st.lists(st.floats(-4, 4), min_size=2, max_size=8), st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set(logits, top_p):
    probabilities = torch.softmax(torch.tensor(logits), dim=0)
    found = set(drawn(logits, Sampling(top_p=top_p), 300).tolist())
    order = probabilities.argsort(descending=True, stable=True).tolist()
    kept = 1
    while kept < len(order) and probabilities[order[:kept]].sum() < top_p - 1e-6:
        kept += 1
    assert found <= set(order[: kept + (probabilities[order[:kept]].sum().item() < top_p + 1e-6)])
    assert order[0] in found or probabilities[order[0]] < 0.1


def test_top_p_by_hand():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).tolist()
    for top_p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.79, {0, 1}), (0.9, {0, 1, 2}), (0.999, {0, 1, 2, 3})):
        assert set(drawn(logits, Sampling(top_p=top_p)).tolist()) == kept
    counts = torch.bincount(drawn(logits, Sampling(top_p=0.79)), minlength=4)
    assert counts[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)  # the rest keep their ratio


@settings(max_examples=60)
@given(st.lists(st.integers(-400, 400), min_size=2, max_size=8, unique=True), st.integers(0, 12), st.floats(0.1, 1))
def test_top_k_keeps_the_most_likely_and_top_p_of_those(logits, top_k, top_p):
    logits = [value / 100 for value in logits]
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    probabilities = torch.softmax(torch.tensor([logits[token] for token in order]), dim=0)
    kept = 1
    while kept < len(order) and probabilities[:kept].sum() < top_p + 1e-6:
        kept += 1
    found = set(drawn(logits, Sampling(top_p=top_p, top_k=top_k), 300).tolist())
    assert found <= set(order[:kept])
    assert set(drawn(logits, Sampling(top_k=1), 50).tolist()) == {order[0]}


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_temperature_that_no_number_is_divided_by_is_greedy(temperature):
    assert set(drawn([0.0, 3.0, 2.0], Sampling(temperature=temperature), 50).tolist()) == {1}


def test_tokens_are_drawn_as_often_as_the_model_says():
    logits = torch.tensor([[0.0, 1.0, -float("inf"), 2.0, -float("inf")]]).expand(20_000, 5)
    drawn = pick(logits, Sampling(temperature=1.0), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    assert shares[2] == shares[4] == 0
    assert (shares - torch.softmax(logits[0], -1)).abs().max() < 0.015


def test_a_row_that_ended_says_no_more_while_others_go_on(toy_decoder):
    model = toy_decoder()
    prompts = [[token] for token in range(1, 9)]
    ends = [generate(model, prompts[:1], [], Sampling(4, 0), 0)[0][1]]
    for answer in generate(model, prompts, ends, Sampling(12, 0), 0):
        assert not set(answer[:-1]) & set(ends)

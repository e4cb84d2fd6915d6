"""Rows without padding and without a prompt twice: the hidden states and gradients of the padded batch, from fewer tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup import kernels
from groundup.model import float32_layers, ragged
from groundup.model.decoder import RewardModel
from groundup.model.hidden_states import document_rows, groups, hidden_states, packed, without_padding
from groundup.model.likelihood import token_log_probabilities, weighted_log_probability

SIZES = {"hidden_size": 32, "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 160}
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FILL = 49  # whatever fills rows up must not matter


def some(numbers, most=30):
    return torch.randint(0, 40, (most,), generator=torch.Generator().manual_seed(numbers)).tolist()


@st.composite
def batches(draw):
    """(ids, wanted): rows of random lengths, some of which begin alike; hidden states are wanted at random places."""
    shared = [some(seed, draw(st.integers(0, 30))) for seed in range(2)]
    rows = [
        draw(st.sampled_from([[], *shared])) + some(10 + draw(st.integers(0, 4)), draw(st.integers(1, 30)))
        for _ in range(draw(st.integers(1, 6)))
    ]
    ids = torch.full((len(rows), max(map(len, rows)) + draw(st.integers(0, 5))), FILL)
    wanted = torch.zeros(ids.shape)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        share = draw(st.sampled_from([0.0, 0.3, 1.0]))
        wanted[number, : len(row)] = (torch.rand(len(row), generator=torch.Generator().manual_seed(number)) < share).float()
    return ids, wanted


def by_kernels(model):
    try:
        model.use_kernels(160, torch.float32)
    except kernels.Unavailable as error:
        pytest.skip(str(error))
    return model


@pytest.fixture(scope="module", params=["kernels", "dense", "experts"])
def both(request, toy_decoder):
    """(a model, the same padded by PyTorch)"""
    changes = EXPERTS if request.param == "experts" else {}
    found = [toy_decoder(seed=3, scale=0.2, **SIZES, **changes) for _ in range(2)]
    if request.param == "kernels":
        by_kernels(found[0])
    return found


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def require_close(found, expected):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.allclose(found[name], one, rtol=1e-4, atol=1e-5 * max(1.0, one.abs().max().item())), name


def padded(model, ids, wanted):
    """Log-probabilities as the whole batch gives them, every row as it is given."""
    return torch.log_softmax(model(ids), -1).gather(2, ids.roll(-1, 1)[..., None]).squeeze(2) * (wanted != 0)


@settings(max_examples=12, deadline=None)
@given(batch=batches())
def test_log_probabilities_and_gradients_are_those_of_the_padded_batch(both, batch):
    (model, plain), (ids, wanted) = both, batch
    slopes = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0))
    expected = padded(plain, ids, wanted)
    found = token_log_probabilities(model, ids, ids.roll(-1, 1), wanted_BT=wanted)
    assert torch.allclose(found, expected, atol=1e-5)
    require_close(gradients(model, (found * slopes).sum()), gradients(plain, (expected * slopes).sum()))
    loss = weighted_log_probability(model, ids, ids.roll(-1, 1), slopes * wanted)
    expected = (padded(plain, ids, wanted) * slopes).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-4)
    require_close(gradients(model, loss), gradients(plain, expected))


@settings(max_examples=8, deadline=None)
@given(batch=batches(), seed=st.integers(0, 9))
def test_documents_that_share_a_row_are_computed_as_far_as_they_are_asked_for(both, batch, seed):
    ids, wanted = batch
    generator = torch.Generator().manual_seed(seed)
    documents = (torch.rand(ids.shape, generator=generator) < 0.2).cumsum(1) % 3  # one may go on after another
    losses = [weighted_log_probability(one, ids, ids.roll(-1, 1), wanted, documents) for one in both]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5, abs=1e-4)
    require_close(*(gradients(one, loss) for one, loss in zip(both, losses, strict=True)))
    rows, at = document_rows(ids, documents, wanted.flatten().nonzero().squeeze(1))
    rows.check()
    needed = [(row, place) for row in range(len(ids)) for place in range(ids.shape[1])
              if (wanted[row, place:] * (documents[row, place:] == documents[row, place])).any()]  # fmt: skip
    assert len(rows.ids) == max(1, len(needed))
    for row, place in needed:
        there = at.view(ids.shape)[row, place]
        assert (rows.ids[there], rows.positions[there]) == (ids[row, place], place)


@settings(max_examples=5, deadline=None)
@given(batch=batches())
def test_scores_are_those_of_the_padded_batch(both, batch):
    (model, plain), (ids, wanted) = both, batch
    scorers = [RewardModel(one.config, one.model) for one in both]
    scorers[1].score.weight = scorers[0].score.weight
    found, expected = scorers[0](ids, wanted_BT=wanted), scorers[1](ids) * wanted
    assert torch.allclose(found, expected, atol=1e-5)
    require_close(gradients(model, found.square().sum()), gradients(plain, expected.square().sum()))


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_no_token_is_lost_or_computed_for_nothing(batch):
    ids, wanted = batch
    lengths = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in wanted]
    if not any(lengths):
        return
    rows, at = without_padding(ids, lengths, 32)
    rows.check()
    new, documents, where = packed(ids, lengths)
    for number, length in enumerate(lengths):
        there = at[number, :length]
        assert rows.ids[there].tolist() == ids[number, :length].tolist() == new.flatten()[where[number, :length]].tolist()
        assert rows.positions[there].tolist() == list(range(length))
        assert len(set(documents.flatten()[where[number, :length]].tolist())) <= 1
    assert len(rows.ids) <= sum(lengths) and new.numel() <= len(lengths) * max(lengths)
    assert set(torch.cat([row[:length] for row, length in zip(at, lengths, strict=True)]).tolist()) == set(range(len(rows.ids)))


def test_a_prompt_of_several_answers_is_computed_once(toy_decoder):
    model, asked = by_kernels(toy_decoder(**SIZES)), some(0, 40)
    ids = torch.tensor([asked + some(seed, 10) for seed in (1, 2, 3)] + [some(9, 50)])
    rows, _ = without_padding(ids, [50] * 4, 32)
    assert len(rows.ids) == 40 + 3 * 10 + 50 and len(rows.starts) == 3
    assert (rows.documents == ragged.SHARED).sum() == 40
    wanted = torch.zeros(ids.shape)
    wanted[:, 45:] = 1
    found = hidden_states(model.model, ids, wanted.flatten().nonzero().squeeze(1), torch.float32)
    model.drop_kernels()
    assert torch.allclose(found, model.model(ids)[:, 45:].flatten(0, 1), atol=1e-5)


def test_rows_share_a_beginning_only_where_that_is_less_work():
    alike = [[1, 2, 3], [1, 2, 4]]
    assert list(groups(alike, 64)) == [(2, [0, 1])]
    long = [[1, *range(9, 1000)], [1, *range(2000, 3000)]]  # a thousand tokens beside a thousand that see none of them
    assert list(groups(long, 64)) == [(0, [0]), (0, [1])]
    assert list(groups([[], [5]], 64)) == [(0, [1])]


@pytest.mark.parametrize("wrong", ["starts", "documents", "positions", "float"])
def test_rows_that_the_kernels_would_read_beyond_are_refused(toy_decoder, wrong):
    model = by_kernels(toy_decoder(**SIZES))
    rows, _ = without_padding(torch.tensor([[1, 2, 3], [4, 5, 6]]), [3, 2], 32)
    changed = {
        "starts": {"starts": rows.starts + 1},
        "documents": {"documents": rows.documents[1:]},
        "positions": {"positions": rows.positions - 1},
        "float": {"ids": rows.ids.float()},
    }[wrong]
    with pytest.raises(TypeError, match=r"starts must ascend|as many as ids|vectors of int32"):
        float32_layers.hidden_states(model.model, rows._replace(**changed))


@pytest.mark.parametrize("wrong", [[], [1, 1], [2, 1], [-1, 0], [4, 5]])
def test_tokens_that_are_asked_for_and_not_there_are_refused(toy_decoder, wrong):
    model = by_kernels(toy_decoder(**SIZES))
    rows, _ = without_padding(torch.tensor([[1, 2, 3], [4, 5, 6]]), [3, 2], 32)
    with pytest.raises(IndexError, match="of the 5 tokens, one or more, ascending"):
        float32_layers.hidden_states(model.model, rows, torch.tensor(wrong, dtype=torch.long))


def test_after_the_last_attention_only_what_is_asked_for_goes_on(toy_decoder):
    """Whatever the last MLP would make of other tokens, and whatever they would add to its gradients."""
    model, ids = by_kernels(toy_decoder(**SIZES)), torch.tensor([some(0, 40)])
    rows, _ = without_padding(ids, [40], 32)
    asked, results = torch.tensor([3, 17, 39]), []
    for places in (None, asked):
        hidden = float32_layers.hidden_states(model.model, rows, places)
        hidden = hidden if places is not None else hidden[asked]
        results.append((hidden.detach(), gradients(model, hidden.square().sum())))
    assert torch.equal(results[1][0], results[0][0])
    require_close(results[1][1], results[0][1])

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data import token_files
from groundup.data.config import MixtureConfig
from groundup.data.token_files import TokenFile
from groundup.model.likelihood import token_log_probabilities
from groundup.training import data_order
from groundup.training.data_order import Stream, check_ids, document_order, draw
from groundup.training.objectives import next_token
from groundup.training.parallel import Processes

CPU = torch.device("cpu")
SEPARATOR = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


def stored(folder, documents):
    """A token file of documents that each begin with the separator, as the tokens stage writes them."""
    sequences = [np.array([SEPARATOR, *document]) for document in documents]
    token_files.write(folder / "tokens", sequences, np.dtype(np.uint16))
    return TokenFile(folder / "tokens")


documents = st.lists(st.lists(st.integers(1, 49), max_size=12), min_size=1, max_size=8)


@given(
    documents, st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(1, 9)
)
def test_rows_are_the_naive_concatenation_shuffled_within_each_phase(folder, some, picks, context):
    phases = [np.array([pick % len(some) for pick in phase]) for phase in picks]
    stream = Stream(stored(folder, some), phases, context, SEPARATOR, seed=1)
    naive = [token for phase in phases for number in phase for token in (SEPARATOR, *some[number])]
    found = [stream.row(row).tolist() for row in range(stream.rows)]
    expected, begin, first = [], 0, 0
    for phase in phases:
        end = begin + sum(1 + len(some[number]) for number in phase)
        rows = [naive[start : start + context + 1] for start in range(begin, end - context, context)]
        assert sorted(found[first : first + len(rows)]) == sorted(rows)
        expected, begin, first = expected + rows, end, first + len(rows)
    assert len(found) == len(expected)


def test_a_stream_without_documents_has_no_rows(folder):
    assert Stream(stored(folder, [[1, 2]]), [np.zeros(0, dtype=int)], 4, SEPARATOR, 0).rows == 0


@given(documents, st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 3))
def test_batches_do_not_depend_on_the_micro_batch(folder, some, context, rows, micro_rows, step):
    some = [*some, list(range(1, 8))]
    stream = Stream(stored(folder, some), [np.arange(len(some))], context, SEPARATOR, 0)
    whole = stream.batches(step, rows, rows, CPU)
    parts = stream.batches(step, rows, micro_rows, CPU)
    assert len(whole) == 1 and all(len(part["ids"]) <= micro_rows for part in parts)
    assert [bool(part["last"]) for part in parts] == [*[False] * (len(parts) - 1), True]
    for name in ("ids", "targets", "documents", "weight"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[0][name])
    assert sum(part["weight"].sum().item() for part in parts) == pytest.approx(1)
    expected = [stream.row(row % stream.rows) for row in range(step * rows, (step + 1) * rows)]
    assert whole[0]["ids"].tolist() == [row[:-1].tolist() for row in expected]
    assert whole[0]["targets"].tolist() == [row[1:].tolist() for row in expected]


def test_documents_are_numbered_within_a_row(folder):
    stream = Stream(stored(folder, [[5, 6, 7, 8], [9], [4, 3, 2]]), [np.array([0, 1, 2])], 5, SEPARATOR, 0)
    [batch] = stream.batches(0, 2, 2, CPU)
    numbers = {tuple(ids): row for ids, row in zip(batch["ids"].tolist(), batch["documents"].tolist(), strict=True)}
    assert numbers == {(0, 5, 6, 7, 8): [1, 1, 1, 1, 1], (0, 9, 0, 4, 3): [1, 1, 2, 2, 2]}


def test_accumulated_gradients_are_those_of_the_big_batch(folder, toy_decoder):
    some = [list(range(1 + n, 20 + 2 * n)) for n in range(12)]
    stream = Stream(stored(folder, some), [np.arange(12)], 16, SEPARATOR, 0)

    def gradients(micro_rows):
        model = toy_decoder(seed=1, scale=0.1)
        losses = []
        for batch in stream.batches(1, 6, micro_rows, CPU):
            loss, metrics = next_token(model, batch, torch.float32)
            loss.backward()
            losses.append(metrics["loss"])
        return sum(losses), {name: parameter.grad for name, parameter in model.named_parameters()}

    loss, expected = gradients(6)
    for micro_rows in (1, 2, 4, 5):
        found_loss, found = gradients(micro_rows)
        assert found_loss == pytest.approx(loss, abs=1e-6)
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, atol=1e-6, rtol=0), name


def test_packed_loss_is_the_loss_of_the_documents_alone(folder, toy_decoder):
    some = [np.random.default_rng(n).integers(1, 50, size=5 + 7 * (n % 4)).tolist() for n in range(8)]
    length = sum(1 + len(document) for document in some) - 1
    stream = Stream(stored(folder, some), [np.arange(8)], length, SEPARATOR, 0)
    model = toy_decoder(seed=2, max_position_embeddings=256)
    # The last row of a stream wants one token more, which the next pass would bring.
    row = np.concatenate([[SEPARATOR, *document] for document in some])
    ids = torch.from_numpy(row[None, :-1])
    targets = torch.from_numpy(row[None, 1:])
    assert stream.rows == 1 and stream.row(0).tolist() == row.tolist()
    packed = token_log_probabilities(model, ids, targets, (ids == SEPARATOR).cumsum(1)).sum().item()
    alone = 0.0
    for number, document in enumerate(some):
        after = [SEPARATOR] if number + 1 < len(some) else []
        whole = torch.tensor([[SEPARATOR, *document, *after]])
        alone += token_log_probabilities(model, whole[:, :-1], whole[:, 1:]).sum().item()
    assert packed / length == pytest.approx(alone / length, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_document_changes_no_others_logits(folder, toy_decoder, dtype):
    """Bitwise: masked places weigh exactly nothing."""
    some = [list(range(3, 20)), list(range(5, 40)), list(range(9, 17))]
    stream = Stream(stored(folder, some), [np.arange(3)], 62, SEPARATOR, 0)
    [batch] = stream.batches(0, 1, 1, CPU)
    model = toy_decoder(seed=2)
    logits = model(batch["ids"], batch["documents"], dtype=dtype)
    for number in (1, 2, 3):
        own = (batch["documents"] == number) & (batch["ids"] != SEPARATOR)
        changed = torch.where(own, batch["ids"] * 7 % 49 + 1, batch["ids"])
        found = model(changed, batch["documents"], dtype=dtype)
        others = batch["documents"] != number
        assert torch.equal(found[others], logits[others])
        assert not torch.equal(found[~others], logits[~others])


@given(documents, st.integers(1, 6), st.integers(1, 7), st.integers(1, 3), st.integers(2, 4), st.integers(0, 3))
def test_processes_share_the_rows_of_one_process(folder, some, context, rows, micro_rows, world, step):
    some = [*some, list(range(1, 8))]
    stream = Stream(stored(folder, some), [np.arange(len(some))], context, SEPARATOR, 0)
    [whole] = stream.batches(step, rows, rows, CPU)
    shares = [stream.batches(step, rows, micro_rows, CPU, Processes(rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # or some would wait for ever
    weighing = [row for together in zip(*shares, strict=True) for part in together
                for row, weight in zip(part["ids"].tolist(), part["weight"], strict=True) if weight.any()]  # fmt: skip
    assert weighing == whole["ids"].tolist()
    assert sum(part["weight"].sum().item() for share in shares for part in share) == pytest.approx(1)
    assert all(len(part["ids"]) <= micro_rows for share in shares for part in share)


def test_an_id_outside_the_vocabulary_is_named(folder, monkeypatch):
    monkeypatch.setattr(data_order, "CHECKED_AT_ONCE", 4)
    file = stored(folder, [[5, 6, 7], [8, 9], [10, 49, 12]])
    check_ids(file, 50, "train.bin")
    with pytest.raises(UserError, match=r"train.bin: document 2 holds token id 49, the vocabulary has 49; encode"):
        check_ids(file, 49, "train.bin")


def table(lengths):
    return [
        {"domain": domain, "tokens": tokens, "best": best}
        for domain, tokens, best in zip(("code", "prose", "other") * len(lengths), lengths, best_flags(), strict=False)
    ]


def best_flags():
    while True:
        yield from (True, False, False, True)


LENGTHS = [100 + 7 * (n % 13) for n in range(300)]


def test_order_follows_the_shares_and_ends_on_the_best_documents():
    rows = table(LENGTHS)
    mixture = MixtureConfig(weights={"code": 0.6, "prose": 0.4}, max_repeats=4.0)
    (stable, last), realised = document_order(rows, mixture, 0.25, 20_000, 3)
    tokens = np.array([row["tokens"] for row in rows])
    for phase, part, budget in (("stable", stable, 15_000), ("best data", last, 5_000)):
        shares = {name: sum(rows[n]["tokens"] for n in part if rows[n]["domain"] == name) for name in ("code", "prose")}
        assert shares["code"] / sum(shares.values()) == pytest.approx(0.6, abs=0.1)
        assert not any(rows[n]["domain"] == "other" for n in part)
        assert sum(shares.values()) >= sum(realised[phase][name]["tokens"] for name in shares) == budget
    assert all(rows[n]["best"] for n in last)
    assert realised["stable"]["code"]["share"] == pytest.approx(0.6, abs=0.001)
    assert realised["best data"]["prose"]["share"] == pytest.approx(0.4, abs=0.001)
    assert realised["stable"]["other"]["tokens"] == 0
    assert tokens[np.concatenate((stable, last))].sum() >= 20_000


@pytest.mark.parametrize(("best", "stable_tokens"), [(0, 1000), (2, 400), (10, 300)])
def test_what_the_best_documents_cannot_give_comes_from_all(best, stable_tokens):
    rows = [{"domain": "prose", "tokens": 100, "best": number < best} for number in range(10)]
    phases, realised = document_order(rows, MixtureConfig(max_repeats=3.0), 0.7, 1000, 0)
    assert list(realised) == (["stable", "best data"] if best else ["stable"]) and len(phases) == len(realised)
    assert realised["stable"]["prose"]["tokens"] == stable_tokens
    assert sum(100 for phase in phases for _ in phase) >= 1000
    assert not best or all(rows[number]["best"] for number in phases[-1])


def test_a_training_shorter_than_its_text_reads_rows_from_all_over_it(folder, monkeypatch):
    rows = table(LENGTHS)
    (order,), realised = document_order(rows, MixtureConfig(), 0.0, 4_000, 0)
    assert sorted(order) == list(range(len(rows)))  # eleven times as much as it reads
    [most] = [sum(one["tokens"] for one in parts.values()) // 10 for parts in realised.values()]
    documents = stored(folder, [[number % 50] * size for number, size in enumerate(LENGTHS)])
    stream = Stream(documents, [order], 10, SEPARATOR, 0, [most])
    assert stream.rows == most == 400
    assert len({int(np.searchsorted(stream.starts, at, "right")) for at in stream.offsets}) > 150  # documents
    monkeypatch.setattr(data_order, "MOST_SPARE", 2)
    (order,), _ = document_order(rows, MixtureConfig(), 0.0, 4_000, 0)
    assert 8_000 <= sum(LENGTHS[number] for number in order) < 8_600


def test_a_domain_is_read_no_more_often_in_both_phases_together_than_the_mixture_allows():
    rows = [{"domain": "a", "tokens": 100, "best": True} for _ in range(10)]
    rows += [{"domain": "b", "tokens": 100, "best": number < 30} for number in range(100)]
    mixture = MixtureConfig(weights={"a": 0.9, "b": 0.1}, max_repeats=1.0)
    _, realised = document_order(rows, mixture, 0.5, 11_000, 0)
    for domain, available in (("a", 1000), ("b", 10_000)):
        assert sum(shares[domain]["tokens"] for shares in realised.values()) == available


def test_only_best_documents_where_there_are_none():
    rows = [{"domain": "prose", "tokens": 100, "best": False}]
    assert document_order(rows, MixtureConfig(), 1.0, 150, 0)[0][0].tolist() == [0, 0]


def test_a_domain_outside_the_mixture_is_not_read_even_where_the_others_have_no_best_documents():
    rows = [{"domain": name, "tokens": 100, "best": name == "other"} for name in ("code", "other") for _ in range(9)]
    phases, realised = document_order(rows, MixtureConfig(weights={"code": 1.0}), 0.5, 400, 0)
    assert realised.keys() == {"stable"}
    assert {rows[number]["domain"] for phase in phases for number in phase} == {"code"}


@settings(max_examples=50)
@given(st.integers(1, 60_000), st.floats(0, 1), st.integers(0, 5))
def test_order_is_deterministic_long_enough_and_within_the_repeats(tokens, best_share, seed):
    rows = table(LENGTHS)
    order, again = (
        np.concatenate(document_order(rows, MixtureConfig(max_repeats=3.0), best_share, tokens, seed)[0]) for _ in range(2)
    )
    assert (order == again).all()
    assert np.array(LENGTHS)[order].sum() >= tokens
    # Twice, as the two phases count for themselves; and one document of each domain more, to be long enough.
    assert np.bincount(order).max() <= 2 * (3 + 1)


def test_another_seed_is_another_order():
    rows = table(LENGTHS)
    orders = [np.concatenate(document_order(rows, MixtureConfig(), 0.1, 9_000, seed)[0]).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(0, 500), st.integers(0, 3))
def test_draw_takes_whole_shuffled_passes(lengths, tokens, seed):
    lengths, chosen = np.array([999, *lengths]), np.arange(1, len(lengths) + 1)
    order = draw(chosen, lengths, tokens, seed)
    assert lengths[order].sum() >= tokens and (len(order) == 1 or lengths[order[:-1]].sum() <= tokens)
    for start in range(0, len(order) - len(chosen) + 1, len(chosen)):
        assert sorted(order[start : start + len(chosen)]) == chosen.tolist()

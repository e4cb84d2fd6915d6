import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.posttraining.batches import collate, parts_by_length, prompt_of, row_of
from groundup.training.epoch_order import chosen_rows, micro_batches, steps_for

CPU = torch.device("cpu")


def test_collate_shifts_pads_and_masks():
    batch = collate([([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 4], [0, 1])], pad=3, device=CPU)
    assert batch["ids"].tolist() == [[5, 6, 7], [9, 4, 3]]
    assert batch["targets"].tolist() == [[6, 7, 8], [4, 3, 3]]
    assert batch["mask"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch["mask"].dtype == torch.float32 and batch["ids"].is_contiguous()


row = st.lists(st.tuples(st.integers(4, 49), st.integers(0, 1)), min_size=2, max_size=9)
rows = st.lists(row, min_size=1, max_size=5)


@given(rows)
def test_collate_keeps_every_token_and_only_the_assistants_targets(pairs):
    some = [([token for token, _ in row], [spoken for _, spoken in row]) for row in pairs]
    batch = collate(some, pad=3, device=CPU)
    for index, (ids, spoken) in enumerate(some):
        whole = [batch["ids"][index, 0].item(), *batch["targets"][index].tolist()]
        assert whole[: len(ids)] == ids and set(whole[len(ids) :]) <= {3}
        picked = batch["targets"][index][batch["mask"][index] == 1].tolist()
        assert picked == [token for token, said in zip(ids[1:], spoken[1:], strict=True) if said]


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 5))
def test_every_epoch_covers_the_rows_at_most_once_and_all_that_fit(count, batch, seed):
    per_epoch = steps_for(1, batch, count)
    assert per_epoch == count // min(batch, count) and steps_for(3, batch, count) == 3 * per_epoch
    epochs = []
    for epoch in range(2):
        steps = [chosen_rows(epoch * per_epoch + step, batch, count, seed) for step in range(per_epoch)]
        assert {len(some) for some in steps} == {min(batch, count)}
        chosen = [row for some in steps for row in some]
        assert len(chosen) == len(set(chosen)) == per_epoch * min(batch, count)
        assert set(chosen) <= set(range(count)) and len(chosen) > count - min(batch, count)
        epochs.append(chosen)
    if count > 12:
        assert epochs[0] != epochs[1]  # a fresh permutation
    assert chosen_rows(per_epoch, batch, count, seed) == epochs[1][: min(batch, count)]


def test_an_exact_number_of_batches_covers_each_row_exactly_once():
    chosen = [row for step in range(6) for row in chosen_rows(step, 5, 30, 1)]
    assert sorted(chosen) == list(range(30))


def test_another_seed_is_another_order():
    assert chosen_rows(0, 20, 40, 1) != chosen_rows(0, 20, 40, 2)


@pytest.mark.parametrize("answer", ["it returns the path", "", "a <|im_end|> inside", "  spaces around  "])
def test_row_of_ends_with_the_token_that_ends_the_answer(toy_tokenizer, answer):
    ids, spoken = row_of(toy_tokenizer, "what does path return", answer)
    prompt = prompt_of(toy_tokenizer, "what does path return")
    assert len(ids) == len(spoken) and ids[: len(prompt)] == prompt
    said = [*toy_tokenizer.encode(answer.strip()), toy_tokenizer.message_end]
    assert ids[len(prompt) :] == said
    assert spoken == [0] * len(prompt) + [1] * len(said)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 5))
def test_micro_batches_hold_each_pair_once_and_pad_no_more(lengths, at_once):
    pairs = [[([0] * length, [1] * length) for length in one] for one in lengths]
    parts = parts_by_length(range(len(pairs)), pairs, at_once)
    assert sorted(number for part in parts for number in part) == list(range(len(pairs)))
    assert max(map(len, parts)) <= at_once and parts_by_length([2, 0], pairs, 0) == [[2, 0]]

    def padded(parts):
        return sum(len(part) * max(max(lengths[number]) for number in part) for part in parts)

    if len(pairs) % at_once == 0:
        assert padded(parts) <= padded(micro_batches(list(range(len(pairs))), at_once))

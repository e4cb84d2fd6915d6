"""What would fail in silence is found in rows, with its count; strict refuses it."""

import logging
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.posttraining import data_checks, dpo, grpo, ppo, reward, user_data
from groundup.posttraining.batches import row_of
from groundup.posttraining.config import DpoConfig, GrpoConfig, PpoConfig, RewardConfig
from groundup.posttraining.rewards import open_reward
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.runtime import Runtime

FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())

GOOD = [("what is a", "the path"), ("what is b", "the file"), ("what is c", "it returns")]


@pytest.fixture(scope="module")
def rows(toy_tokenizer):
    return [row_of(toy_tokenizer, *one) for one in GOOD]


def names(findings):
    return {one.name: (one.count, one.total) for one in findings}


def test_rows_of_ours_have_none(rows, toy_tokenizer):
    assert data_checks.of_conversations(rows, toy_tokenizer, {}) == []
    assert data_checks.of_pairs(list(pairwise(rows)), toy_tokenizer, {}) == []


def test_an_end_that_is_not_learned(rows, toy_tokenizer):
    cut = (rows[0][0][:-1], rows[0][1][:-1])
    masked = (rows[1][0], [*rows[1][1][:-1], 0])
    found = names(data_checks.of_conversations([cut, masked, rows[2]], toy_tokenizer, {}))
    assert found == {"answers whose end is not learned": (2, 3)}


def test_what_a_template_writes_after_the_end_is_no_fault(rows, toy_tokenizer):
    """Pairs count Qwen's line end as part of the answer, as TRL does."""
    after = [([*ids, 3], [*spoken, 1]) for ids, spoken in rows]
    assert data_checks.of_conversations(after, toy_tokenizer, {}) == []


def test_padding_that_is_the_end(rows, toy_tokenizer):
    other = Tokenizer.from_merges(toy_tokenizer.merges)
    other.pad = other.message_end
    found = names(data_checks.of_conversations(rows, other, {}))
    assert found == {"padding is the end of an answer, <|im_end|>": (3, 3)}


def test_a_beginning_that_stands_twice(rows, toy_tokenizer):
    twice = [([ids[0], *ids], [0, *spoken]) for ids, spoken in rows[:2]]
    found = names(data_checks.of_conversations([*twice, rows[2]], toy_tokenizer, {}))
    assert found == {"the token that begins a text stands twice": (2, 3)}


def test_an_end_other_than_the_tokenizers(rows, toy_tokenizer):
    other = Tokenizer.from_merges(toy_tokenizer.merges)
    for stated in ('"<|endoftext|>"', '{"content": "<|endoftext|>"}'):
        other.foreign_files = {"tokenizer_config.json": f'{{"eos_token": {stated}}}'}
        found = names(data_checks.of_conversations(rows, other, {}))
        assert found == {"answers end with <|im_end|>, not with tokenizer_config.json's eos_token <|endoftext|>": (3, 3)}
    for content in ('{"eos_token": "<|im_end|>"}', '{"eos_token": null}', "[]", "no json", '{"eos_token": "none such"}'):
        other.foreign_files = {"tokenizer_config.json": content}
        assert data_checks.of_conversations(rows, other, {}) == []


def test_what_was_left_out_and_what_is_there_twice(rows, toy_tokenizer):
    found = names(data_checks.of_conversations([*rows, rows[0]], toy_tokenizer, Counter({"longer than 8 tokens": 6})))
    assert found == {"left out, longer than 8 tokens": (6, 10), "the same as one before": (1, 4)}


def test_pairs_and_their_opposites(rows, toy_tokenizer):
    one, two, three = rows
    found = names(data_checks.of_pairs([(one, two), (two, one), (one, three), (one, three)], toy_tokenizer, {}))
    assert found == {"the same as one before": (1, 4), "pairs of which the opposite is there too": (2, 4)}


def test_prompts(rows, toy_tokenizer):
    prompts = [ids[:14] for ids, _ in rows]
    assert data_checks.of_prompts(prompts, toy_tokenizer, {}) == []
    begun = [[prompts[0][0], *prompts[0]], prompts[1], prompts[1]]
    found = names(data_checks.of_prompts(begun, toy_tokenizer, Counter({"longer than 8 tokens": 2})))
    assert found == {
        "left out, longer than 8 tokens": (2, 5), "the token that begins a text stands twice": (1, 3),
        "the same as one before": (1, 3),
    }  # fmt: skip
    other = Tokenizer.from_merges(toy_tokenizer.merges)
    other.pad, other.foreign_files = other.message_end, {"tokenizer_config.json": '{"eos_token": "<|endoftext|>"}'}
    found = names(data_checks.of_prompts(prompts, other, {}))
    assert found == {
        "padding is the end of an answer, <|im_end|>": (3, 3),
        "answers end with <|im_end|>, not with tokenizer_config.json's eos_token <|endoftext|>": (3, 3),
    }


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6))
def test_first_answers(answers):
    """Each finding is about all of them: a part is what training is for."""
    ids, ended, rewards = [[7] * length for length, *_ in answers], [end for _, end, _ in answers], [one for *_, one in answers]
    found = {one.name.partition(",")[0] for one in data_checks.of_first_answers(ids, ended, rewards)}
    assert ("answers that do not end" in found) == (not any(ended))
    assert ("answers that are nothing but their end" in found) == all(end and length == 1 for length, end, _ in answers)
    assert ("answers with one reward" in found) == (len(set(rewards)) == 1)


def test_a_reward_that_is_constant_and_ends_that_are_never_said_are_refused(toy_decoder, toy_tokenizer, tmp_path, caplog):
    policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    asked = ["what is a", "what is b", "what is c", "what is d"]
    for method, settings in (
        (ppo, PpoConfig(iterations=1, rollouts=4, minibatches=1)), (grpo, GrpoConfig(iterations=1, prompts=2, generations=2))
    ):  # fmt: skip
        reward = open_reward("count=never-said", toy_tokenizer, torch.float32, FLOAT32.torch_device)
        runtime = Runtime(FLOAT32, tmp_path / settings.__class__.__name__, "any")
        with caplog.at_level(logging.WARNING):
            found = method.train(policy, toy_tokenizer, [*asked, asked[0]], settings, runtime, reward, 2, asked[:3])
        assert "4 of 4: answers with one reward, 0" in caplog.text and "the same as one before" in caplog.text
        assert found["held_out"]["prompts"] == 3 and found["held_out"]["gain"]["difference"] == 0
        assert found["held_out"]["reward"] == {"before": 0, "after": 0}
        caplog.clear()
        strict = settings.model_copy(update={"strict": True})
        with pytest.raises(UserError, match=r"any: refused, as strict says: .*answers with one reward, 0 \(4 of 4\)"):
            method.train(policy, toy_tokenizer, asked, strict, replace(runtime, folder=tmp_path / method.__name__), reward, 2)
        with pytest.raises(UserError, match=r"any: refused, as strict says: the same as one before \(1 of 5\)"):
            method.train(policy, toy_tokenizer, [*asked, asked[0]], strict, runtime, reward, 2)


def test_prompts_that_stand_there_twice_are_counted(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "{word}"}}\n' for word in "abcdefghijaab"))
    left_out = Counter()
    sides = user_data.prompts([str(path)], "ppo", print, left_out=left_out)
    assert sum(map(len, sides.values())) == 10 and sides["held_out"] and left_out.total() <= 3
    sides = user_data.prompts([str(path)], "ppo", print, [str(path)], left_out=(again := Counter()))
    assert len(sides["train"]) == len(sides["held_out"]) == 10 and again == {"the same as one before": 3}
    path.write_text(path.read_text() + '{"prompt": ""}\n')
    with pytest.raises(UserError, match=r"refused, as strict says: 1 dropped"):
        user_data.prompts([str(path)], "ppo", print, strict=True)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_answers_are_the_runs_of_what_is_learned(tokens):
    ids, spoken = [token for token, _ in tokens], [int(says) for _, says in tokens]
    found = list(data_checks.answers_of((ids, spoken)))
    assert [token for answer in found for token in answer] == [token for token, says in tokens if says]
    assert len(found) == sum(says and not before for before, says in zip([0, *spoken], spoken, strict=False))
    assert all(found)


def pair(chosen, rejected):
    return {"prompt": "what", "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("method", [dpo, reward])
def test_strict_refuses_and_else_it_is_said(method, toy_decoder, toy_tokenizer, tmp_path, caplog):
    policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    kind = DpoConfig if method is dpo else RewardConfig
    pairs = [pair("the path", "it"), pair("it", " it\n"), pair("the file", "the path " * 99)]
    with caplog.at_level(logging.WARNING):
        method.train(policy, toy_tokenizer, pairs, kind(), Runtime(FLOAT32, tmp_path / "a", "any"))
    assert "1 of 3: left out, with chosen equal to rejected, as tokens" in caplog.text
    assert "1 of 3: left out, longer than 6" in caplog.text
    with pytest.raises(UserError, match=r"refused, as strict says: left out, .* \(1 of 3\), left out"):
        method.train(policy, toy_tokenizer, pairs, kind(strict=True), Runtime(FLOAT32, tmp_path / "b", "any"))
    method.train(policy, toy_tokenizer, pairs[:1], kind(strict=True), Runtime(FLOAT32, tmp_path / "c", "any"))


def test_strict_refuses_rows_that_cannot_be_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    user_data.preferences([str(path)], "dpo", print)
    with pytest.raises(UserError, match=r"refused, as strict says: 1 dropped \(chosen equal to rejected: 1"):
        user_data.preferences([str(path)], "dpo", print, strict=True)

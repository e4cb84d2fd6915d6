"""A user's own rows on their way to the methods: nothing that was said is lost, and only what is to be learned is."""

import json
from collections import Counter

import pytest
import torch

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.pipeline import preflight
from groundup.pipeline.recipe import Recipe
from groundup.posttraining import policy_comparison, ppo, tokenize_rows, user_data
from groundup.posttraining.batches import prompt_of, question_of, question_text
from groundup.posttraining.config import PpoConfig, PreferencesConfig, SftConfig
from groundup.posttraining.policy_comparison import compare_policies, label
from groundup.posttraining.reference_answers import answer_loss, plain_prompt
from groundup.posttraining.rewards import open_reward
from groundup.tokenizer.chat import render
from groundup.training.runtime import Runtime

FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())


def said(role, content, **more):
    return {"role": role, "content": content, **more}


TURNS = [
    said("system", "brief"), said("user", "what"), said("assistant", "the file"), said("user", "and"), said("assistant", "it"),
]  # fmt: skip


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def policy(toy_decoder, toy_tokenizer):
    return toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size, max_position_embeddings=128)


@pytest.mark.parametrize("learned", [[1, 1], [0, 1], [1, 0]])
def test_only_the_answers_with_weight_are_learned(toy_tokenizer, learned):
    weights = iter(learned)
    row = {"messages": [one | ({"weight": next(weights)} if one["role"] == "assistant" else {}) for one in TURNS]}
    ids, mask = tokenize_rows.conversation(toy_tokenizer, row)
    expected = [token for text, weight in zip(("the file", "it"), learned, strict=True) if weight
                for token in (*toy_tokenizer.encode(text), toy_tokenizer.message_end)]  # fmt: skip
    assert ids == render(toy_tokenizer, TURNS)[0] and [token for token, one in zip(ids, mask, strict=True) if one] == expected
    assert tokenize_rows.longest_answer((ids, mask)) == max(
        len(toy_tokenizer.encode(text)) + 1 for text, weight in zip(("the file", "it"), learned, strict=True) if weight
    )


def test_a_template_that_does_not_mark_an_answer_is_counted(toy_tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize_rows, "render", lambda tokenizer, messages: ([1, 2, 3], [0, 0, 1]))
    with pytest.raises(UserError, match="the chat template marks 1 of 2 answers"):
        tokenize_rows.conversation(toy_tokenizer, {"messages": [{**one, "weight": 1} if one is TURNS[-1] else
                                                       {**one, "weight": 0} for one in TURNS]})  # fmt: skip


def test_conversations_become_questions_with_their_whole_history(tmp_path):
    written = [{"messages": [*TURNS[:3], said("user", f"and {n}"), said("assistant", "it")]} for n in range(40)]
    heard = []
    sides = user_data.conversations([write(tmp_path / "a.jsonl", *written)], heard.append)
    assert sides["preference"] == sides["train"] and len(sides["train"]) + len(sides["held_out"]) == 40 and sides["held_out"]
    assert {json.dumps(row["messages"]) for side in ("train", "held_out") for row in sides[side]} == {
        json.dumps(row["messages"]) for row in written
    }
    assert all(row["reference"] == "it" and question_of(row) == row["messages"][:-1] for row in sides["train"])
    assert heard == ["sft data: 40 conversations (TRL messages 40)"]


def test_one_prompt_is_trained_on_and_measured_and_that_is_said(tmp_path):
    heard = []
    sides = user_data.conversations([write(tmp_path / "a.jsonl", {"messages": TURNS})], heard.append)
    assert sides["train"] == sides["held_out"] and "nothing can be held out" in heard[-1]


def test_no_turn_is_lost_on_the_way_to_preferences(policy, toy_tokenizer, monkeypatch):
    def answer(model, tokenizer, asked, sampling, seed):
        return [(("the file it", "path")[seed], True)] * len(asked)

    monkeypatch.setattr(policy_comparison, "answer", answer)
    row = {"messages": TURNS, "reference": "it"}
    single = {"messages": TURNS[1:3], "reference": "the file"}
    log, pairs = label(policy, toy_tokenizer, [row, single], PreferencesConfig(min_gap=0.0), 8, 0, "train")
    assert [event["prompt"] for event in log] == [TURNS[:-1], "what"]
    for found in pairs:
        assert found["prompt"] in (TURNS[:-1], TURNS[1:2])
        (ids, _), *_ = tokenize_rows.pair(toy_tokenizer, found)
        prompt = render(toy_tokenizer, found["prompt"], add_generation_prompt=True)[0]
        assert ids[: len(prompt)] == prompt
    assert len(pairs) == 2
    monkeypatch.undo()
    _, samples = compare_policies(policy, policy, toy_tokenizer, [row, single], 1.0, 8, 0)
    assert [one["question"] for one in samples] == ["system: brief\nuser: what\nassistant: the file\nuser: and", "what"]


def test_a_base_model_is_asked_with_the_whole_history_in_plain_text(toy_tokenizer):
    ids = plain_prompt(toy_tokenizer, TURNS[:-1])
    assert toy_tokenizer.decode(ids[1:]) == f"{question_text(TURNS[:-1])}\nassistant:"
    assert toy_tokenizer.decode(plain_prompt(toy_tokenizer, "what")[1:]) == "Question: what\nAnswer:"


def test_ppo_asks_with_the_whole_history(policy, toy_tokenizer, tmp_path, monkeypatch):
    asked = []

    def stop(model, reward_setup, prompts, *rest):
        asked.extend(prompts)
        raise KeyboardInterrupt

    monkeypatch.setattr(ppo, "rollout", stop)
    file = write(tmp_path / "a.jsonl", {"messages": TURNS}, {"prompt": TURNS[:2]}, {"prompt": TURNS[:2]})
    left_out = Counter()
    sides = user_data.prompts([file], "ppo", lambda text: None, left_out=left_out)
    questions = [*sides["train"], *sides["held_out"]]
    assert sorted(map(len, questions)) == [2, len(TURNS) - 1]  # each once, and one of the two is held out
    left_out.clear()
    with pytest.raises(KeyboardInterrupt):
        reward = open_reward("length", toy_tokenizer, torch.float32, torch.device("cpu"))
        runtime = Runtime(FLOAT32, tmp_path, "ppo", left_out=left_out)
        ppo.train(policy, toy_tokenizer, questions, PpoConfig(rollouts=2), runtime, reward, 8)
    assert sorted(one.ids for one in asked) == sorted(prompt_of(toy_tokenizer, one) for one in questions) and not left_out


@torch.no_grad()
def test_the_loss_of_answers_is_the_mean_over_all_their_tokens(policy, toy_tokenizer):
    some = [tokenize_rows.conversation(toy_tokenizer, {"messages": messages}) for messages in (TURNS, TURNS[1:3])]
    nats = []
    for ids, mask in some:
        logp = policy(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
        nats += [-logp[place, ids[place + 1]].item() for place in range(len(ids) - 1) if mask[place + 1]]
    assert answer_loss(policy, some) == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert len(nats) == sum(sum(mask) for _, mask in some)


# --- said before the first expensive stage ----------------------------------------------------------------------------


def recipe(**sections):
    return Recipe.model_validate({"name": "x", "pages": {"sources": [{"source": "topics:", "domain": "web"}]}, **sections})


def test_own_files_are_read_ahead_and_said(tmp_path, capsys):
    talks = write(tmp_path / "talks.jsonl", {"messages": TURNS}, {"messages": TURNS[:2]})
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"})
    whole = recipe(sft={"data": talks}, reward={"data": [pairs]}, ppo={"data": [talks, pairs]})
    checks = {name: getattr(preflight, f"{name}_data") for name in ("sft", "reward", "dpo", "ppo")}
    for check in checks.values():
        check(whole, {})
    err = capsys.readouterr().err
    assert "sft data: 1 conversations (TRL messages 1); 1 dropped" in err and "reward data: 1 preferences" in err
    assert "ppo data: 3 prompts (TRL messages 2, TRL preference 1)" in err
    for section in ("sft", "reward", "dpo"):
        bad = write(tmp_path / "bad.jsonl", {"text": "x"})
        with pytest.raises(UserError, match=r"bad\.jsonl: none of its 1 rows can be used"):
            checks[section](recipe(**{section: {"data": bad}}), {})


def test_own_rows_that_cannot_fit_are_said_after_the_tokenizer(tmp_path, toy_tokenizer):
    toy_tokenizer.save(tmp_path / "tokenizer")
    long = "path " * 300
    talks = write(tmp_path / "talks.jsonl", {"prompt": "what", "completion": long})
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": long, "chosen": "a", "rejected": "b"})
    base, inputs = {"context_length": 64}, {"tokenizer": tmp_path / "tokenizer"}
    with pytest.raises(UserError, match=r"none has an answer of at most sft\.max_answer_tokens = 64"):
        preflight.sft_answers_fit(recipe(base=base, sft={"data": talks}), inputs)
    talks = write(tmp_path / "talks.jsonl", {"prompt": "what", "completion": "path " * 12})
    with pytest.raises(UserError, match="none of 1 held_out questions has at most 32 tokens"):
        preflight.sft_answers_fit(recipe(base=base, sft={"data": write(tmp_path / "c.jsonl", *(
            {"prompt": "the path " * (8 + number % 2), "completion": "it"} for number in range(2)
        ))}), inputs)  # fmt: skip
    preflight.sft_answers_fit(recipe(base=base, sft={"data": talks}), inputs)
    with pytest.raises(UserError, match="dpo: none of 1 preference pairs can be trained on: 1 longer than 64 tokens"):
        preflight.dpo_pairs_fit(recipe(base=base, dpo={"data": pairs}), inputs)


def test_without_any_questions_there_is_a_reason_of_its_own(tmp_path):
    with pytest.raises(user_data.NoQuestions, match=r"no questions for .*; give conversations of your own as data"):
        user_data.rows_of_sft(lambda: [("file:///notes/a.txt", "prose")], SftConfig(), 0, print)
    assert recipe(sft={"data": "a"}).sft.data == ["a"]
    with pytest.raises(ValueError, match=r"sft\.data"):
        recipe(sft={"data": [""]})


def test_a_row_that_the_template_refuses_ends_no_check(tmp_path, toy_tokenizer):
    """Of a folder whose template takes no system message."""
    toy_tokenizer.save(tmp_path / "tokenizer")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    template = (tmp_path / "tokenizer" / "chat_template.jinja").read_text()
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(refuses + template)
    rows = [{"system": "brief", "prompt": f"what {n}", "completion": "it"} for n in range(9)]
    for more in ([], [{"prompt": f"where {n}", "completion": "there"} for n in range(40)]):
        given = recipe(
            sft={"data": write(tmp_path / "talks.jsonl", *rows, *more)}, base={"context_length": 64},
            given={"base": str(tmp_path / "tokenizer")},
        )
        if more:
            preflight.sft_answers_fit(given, {"tokenizer": tmp_path / "tokenizer"})
        else:
            with pytest.raises(UserError, match=r"none of 1 held_out questions can be used: .*no system here"):
                preflight.sft_answers_fit(given, {"tokenizer": tmp_path / "tokenizer"})

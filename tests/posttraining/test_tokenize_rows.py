"""Rows that cannot be trained on are left out by every method, counted by reason, and never cut."""

import copy
import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.generation import engine
from groundup.posttraining import dpo, policy_comparison, ppo, reference_answers, reward, sft, tokenize_rows
from groundup.posttraining.config import DpoConfig, PpoConfig, PreferencesConfig, RewardConfig, SftConfig
from groundup.posttraining.rewards import open_reward
from groundup.tokenizer.chat import render
from groundup.tokenizer.template import ChatTemplate
from groundup.training.runtime import Runtime

CPU = Device(torch.device("cpu"), torch.float32, 1, "a processor", ())


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def conversation(question, answer, **more):
    return {"messages": [said("user", question), said("assistant", answer, **more)]}


def pair(question, chosen="the path", rejected="the file", **more):
    return {
        "prompt": [said("user", question)],
        "chosen": [said("assistant", chosen)],
        "rejected": [said("assistant", rejected)],
        **more,
    }


LONG = "path " * 200
BAD_PAIRS = [
    pair(LONG),
    pair("q", chosen=LONG),
    pair("q", margin=float("nan")),
    pair("q", margin="0.5"),
    pair("q", margin=10**400),
    pair("q", tools=[{"type": "function"}]),
    pair("q", chosen=None),
    {"prompt": "q", "chosen": 1, "rejected": "b"},
    {},
]


@pytest.fixture
def policy(toy_decoder, toy_tokenizer):
    return toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)


@pytest.fixture
def batches(monkeypatch):
    """What a method would train on."""
    taken = []

    def collect(model, objective, batches, rate, steps, *rest, **options):
        taken.extend(batch for step in range(steps) for batch in batches(step))

    for method in (sft, dpo, reward):
        monkeypatch.setattr(method, "tune", collect)
    return taken


def test_sft_leaves_out_and_counts(policy, toy_tokenizer, batches, tmp_path):
    settings = SftConfig(batch_examples=1, max_answer_tokens=16)
    several = {"messages": [*conversation("what is a", "path")["messages"], *conversation("what", "the file")["messages"]]}
    good = [conversation("what is a", "the path"), several, conversation("a", [{"type": "text", "text": "path"}])]
    bad = [
        conversation(LONG, "path"),
        conversation("what is a", LONG),
        conversation("what is a", "path", tool_calls=[{"name": "f"}]),
        conversation("what is a", None),
        {**conversation("what is a", "path"), "tools": [{"type": "function"}]},
        {"messages": [said("user", "what")]},
        {"messages": [said("tool", "what")]},
        {"messages": "what"},
        {},
    ]
    left_out = Counter()
    runtime = Runtime(CPU, tmp_path, "sft", left_out=left_out)
    assert sft.train(policy, toy_tokenizer, [*good, *bad], settings, runtime) == len(good)
    assert left_out.total() == len(bad)
    assert left_out["longer than 65 tokens"] == 1
    assert left_out["with an answer of more than max_answer_tokens = 16"] == 1
    assert left_out["tool_calls: this chat format has no place for it"] == 1
    assert len(batches) == len(good) and all(batch["ids"].shape[1] <= 64 for batch in batches)
    learned = sorted(int((batch["weight"] > 0).sum()) for batch in batches)
    assert learned == sorted(sum(render(toy_tokenizer, row["messages"])[1]) for row in good)
    with pytest.raises(UserError, match="no questions to learn from; of 9 rows left out: ") as refused:
        sft.train(policy, toy_tokenizer, bad, settings, Runtime(CPU, tmp_path, "sft"))
    assert len(str(refused.value)) <= 300


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_pairs_are_left_out_and_counted(method, policy, toy_tokenizer, batches, tmp_path):
    def train(pairs, left_out=None):
        runtime = Runtime(CPU, tmp_path, method, left_out=Counter() if left_out is None else left_out)
        if method == "dpo":
            return dpo.train(policy, toy_tokenizer, pairs, DpoConfig(batch_pairs=2), runtime)
        return reward.train(policy, toy_tokenizer, pairs, RewardConfig(batch_pairs=2), runtime)

    good = [pair("what is a"), pair("what is b", margin=None), pair("what", margin=0.5), pair("a", margin=1)]
    left_out = Counter()
    train([*BAD_PAIRS, *good], left_out)
    assert left_out.total() == len(BAD_PAIRS) and left_out[f"longer than {65 if method == 'dpo' else 64} tokens"] == 2
    assert len(batches) == 2 and all(batch["ids"].shape[1] <= 64 for batch in batches)
    if method == "reward":
        assert sorted(torch.cat([batch["margin"] for batch in batches]).tolist()) == [0, 0, 0.5, 1]
    with pytest.raises(UserError, match=f"{method}: none of 9 preference pairs can be trained on") as refused:
        train(BAD_PAIRS)
    assert len(str(refused.value)) <= 300


def test_a_scorer_never_reads_beyond_the_context(policy, toy_tokenizer):
    """The reward is read at the last token, so it must be inside; a language model's last token is a target only."""
    reward_model = reward.from_policy(policy, 0)
    start = len(render(toy_tokenizer, [said("user", "q")], True)[0])
    exact = [pair("q", chosen="def" * n) for n in range(1, 200)]
    lengths = [len(tokenize_rows.pair(toy_tokenizer, row)[0][0]) for row in exact]
    left_out = Counter()
    results, _ = reward.assess(reward_model, toy_tokenizer, exact, left_out)
    assert results["accuracy"]["n"] == sum(length <= 64 for length in lengths) > 0
    assert left_out == {"longer than 64 tokens": sum(length > 64 for length in lengths)} and start < 64


def test_the_whole_prompt_is_trained_on_and_only_the_last_answer_learned(toy_tokenizer):
    before = [said("system", "be brief"), said("user", "what"), said("assistant", "the file"), said("user", "and")]
    row = {**pair("x"), "prompt": before}
    (ids, spoken), (other, _), margin = tokenize_rows.pair(toy_tokenizer, row)
    assert ids == render(toy_tokenizer, [*before, *row["chosen"]])[0] and margin == 0
    answer = [*toy_tokenizer.encode("the path"), toy_tokenizer.message_end]
    assert ids[-len(answer) :] == answer and sum(spoken) == len(answer) and not any(spoken[: -len(answer)])
    assert other[: -len(toy_tokenizer.encode("the file")) - 1] == ids[: -len(answer)]


def test_ppo_leaves_out_prompts_without_room_for_an_answer(policy, toy_tokenizer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ppo, "rollout", lambda model, reward_setup, prompts, *rest: asked.extend(prompts) or stop())
    length = open_reward("length", toy_tokenizer, torch.float32, torch.device("cpu"))
    left_out = Counter()

    def stop():
        raise KeyboardInterrupt

    def train(questions):
        runtime = Runtime(CPU, tmp_path, "ppo", left_out=left_out)
        ppo.train(policy, toy_tokenizer, questions, PpoConfig(rollouts=4), runtime, length, 16)

    with pytest.raises(KeyboardInterrupt):
        train(["what", LONG, "file"])
    assert left_out == {"longer than 48 tokens": 1} and len(asked) == 2 and max(len(one.ids) for one in asked) <= 48
    with pytest.raises(UserError, match="ppo: none of 1 questions has at most 48 tokens"):
        train([LONG])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "chosen", "rejected", "margin", "tools"]), json_values))
def test_any_row_is_read_or_refused_in_one_line(toy_tokenizer, row):
    assert json.dumps(row, default=str)
    for read in (tokenize_rows.conversation, tokenize_rows.pair):
        try:
            read(toy_tokenizer, row)
        except UserError as error:
            assert len(str(error)) <= 300 and "\n" not in str(error)


def test_questions_without_room_for_an_answer_are_left_out_and_counted(policy, toy_tokenizer):
    """Cut, they would be other questions; so neither labels nor comparisons are made of them."""
    asks = [said("user", "a " * size) for size in (1, 90, 2, 90)]
    questions = [{"messages": [one], "reference": "a", "kind": "toy"} for one in asks]
    asked = []

    def recorded(model, prompts, *rest):
        asked.append(len(prompts))
        return engine.generate(model, prompts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_answers, "generate", recorded)
        left_out = Counter()
        judgements, _ = policy_comparison.label(policy, toy_tokenizer, questions, PreferencesConfig(), 8, 0, "train", left_out)
        assert len(judgements) == 2 and left_out == {"longer than 56 tokens": 2}
        figures, samples = policy_comparison.compare_policies(policy, policy, toy_tokenizer, questions, 0.7, 8, 0, left_out)
        assert figures["n"] == len(samples) == 2 and left_out.total() == 4
        found = sft.compare_with_base(policy, policy, toy_tokenizer, questions, 8, 0, left_out)
        assert found["held_out"]["overlap"]["sft"]["n"] == 2 and left_out.total() == 6
    assert set(asked) == {2}
    with pytest.raises(UserError, match="none of 2 questions has at most 56 tokens"):
        policy_comparison.label(policy, toy_tokenizer, [questions[1], questions[3]], PreferencesConfig(), 8, 0, "train")


WITHOUT_SYSTEM = """{{ '<|endoftext|>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if messages | length > 1 %}<think>{% endif %}{% endif %}"""


@pytest.fixture
def theirs(toy_tokenizer):
    """A tokenizer of a folder whose template takes no system message, and does not show an answer of a second turn whole."""
    found = copy.copy(toy_tokenizer)
    found.template = ChatTemplate(WITHOUT_SYSTEM, {}, found.special_tokens, (), found.ends, "theirs")
    return found


def test_what_a_template_refuses_is_left_out_and_counted(policy, theirs):
    """It was known when rows were trained on; what is asked afterwards ended the step, with all that was learned."""
    system, second = [said("system", "brief"), said("user", "a")], [said("user", "a"), said("assistant", "b"), said("user", "c")]
    questions = [{"messages": one, "reference": "a", "kind": "toy"} for one in (system, second, [said("user", "a")])]
    left_out = Counter()
    found = sft.compare_with_base(policy, policy, theirs, questions, 8, 0, left_out)
    assert found["held_out"]["answer_loss"]["conversations"] == 1 and left_out.total() == 2
    for expected in ("no system here", "changes the text before"):
        assert any(expected in reason for reason in left_out)
    judgements, _ = policy_comparison.label(policy, theirs, questions, PreferencesConfig(), 8, 0, "train", counted := Counter())
    assert len(judgements) == 2 and counted.total() == 1
    with pytest.raises(UserError, match=r"none of 1 questions .*: 1 .*no system here") as refused:
        policy_comparison.compare_policies(policy, policy, theirs, questions[:1], 0.7, 8, 0)
    assert len(str(refused.value)) <= 300


def test_as_many_are_asked_as_are_wanted_where_the_first_cannot_be(policy, toy_tokenizer):
    questions = [{"messages": [said("user", "a " * size)], "reference": "a", "kind": "toy"} for size in (90, 90, 1, 2, 3)]
    left_out = Counter()
    found = sft.compare_with_base(policy, policy, toy_tokenizer, questions, 8, 0, left_out, 2)
    assert found["held_out"]["answer_loss"]["conversations"] == 2 and left_out == {"longer than 56 tokens": 2}
    judgements, _ = policy_comparison.label(policy, toy_tokenizer, questions, PreferencesConfig(), 8, 0, "train", None, 2)
    assert [one["prompt"].split() for one in judgements] == [["a"], ["a", "a"]]


def test_the_only_reason_is_told_to_its_end():
    """What to do stands there: "..., and its tokenizer l" was the end of a message on folders without a chat template."""
    long = "the model's folder has no chat template, and its tokenizer lacks the tokens of ours; put a chat_template.jinja there"
    assert tokenize_rows.top_reasons(Counter({long: 4})) == f"4 {long}"
    assert tokenize_rows.top_reasons(Counter({long: 4, "empty": 1})) == f"4 {long[:60]}, 1 empty"

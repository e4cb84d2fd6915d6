"""Rewards that are models, anybody's folders or programs; whatever a program does wrong is said in one line."""

import itertools
import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.files import write_json
from groundup.model import model_folder
from groundup.posttraining import reward_functions
from groundup.posttraining.batches import prompt_of, row_of
from groundup.posttraining.reward import from_policy, score_rows
from groundup.posttraining.reward_files import files_of, kind_of
from groundup.posttraining.rewards import ModelReward, ProgramReward, Prompt, open_reward
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
ASKED = ["what is the path", "the file"]
TEXTS = ["it returns the path", "file"]


@pytest.fixture(scope="module")
def prompts(toy_tokenizer):
    return [Prompt(asked, prompt_of(toy_tokenizer, asked)) for asked in ASKED]


@pytest.fixture(scope="module")
def answers(toy_tokenizer):
    return [[*toy_tokenizer.encode(text), toy_tokenizer.message_end] for text in TEXTS]


def program(toy_tokenizer, function):
    return ProgramReward("mine:score", function, toy_tokenizer, CPU)


def asked(*questions):
    return [[{"role": "user", "content": question}] for question in questions]


def test_a_program_is_given_messages_and_texts(toy_tokenizer, prompts, answers):
    given_to = {}

    def score(prompts, completions):
        given_to.update(prompts=prompts, completions=completions)
        return (one for one in (1, torch.tensor(0.5)))

    found = program(toy_tokenizer, score)(prompts, answers)
    assert found.tolist() == [1.0, 0.5] and found.dtype == torch.float32
    assert given_to == {"prompts": asked(*ASKED), "completions": TEXTS}


class Silent(Exception):
    def __str__(self):
        raise RuntimeError


async def awaited(prompts, completions):
    return [1.0, 2.0]


def raising(error):
    def score(prompts, completions):
        raise error

    return score


def test_a_program_may_change_what_it_is_given(toy_tokenizer, answers):
    def score(prompts, completions):
        prompts[0][0]["content"] = "mine"
        prompts.clear()
        completions[0] += "!"
        return [1.0, 2.0]

    messages = [{"role": "user", "content": "what"}]
    reward = program(toy_tokenizer, score)
    assert reward([Prompt(messages, [1])] * 2, answers).tolist() == [1, 2]
    assert messages == [{"role": "user", "content": "what"}]


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda prompts, completions: [1.0], "it returned 1 numbers for 2 completions"),
        (lambda prompts, completions: [1.0, math.nan], "for completion 2 it returned nan; wanted is a finite number"),
        (lambda prompts, completions: [None, 1.0], "for completion 1 it returned None"),
        (lambda prompts, completions: ["1", 1.0], "for completion 1 it returned '1'"),
        (lambda prompts, completions: [10**400, 1.0], "for completion 1 it returned 10000000000"),
        (lambda prompts, completions: [1e39, 1.0], "for completion 1 it returned 1e+39"),
        (lambda prompts, completions: 5, "TypeError: 'int' object is not iterable"),
        (lambda prompts, completions: completions[7], "IndexError: list index out of range"),
        (lambda texts: [1.0, 2.0], "TypeError: "),
        (lambda prompts, completions: {}["x" * 1000], "KeyError: "),
        (lambda prompts, completions: itertools.count(), "it returned more than 2 numbers for 2 completions"),
        (lambda prompts, completions: {0: 1.0, 1: 2.0}, "it returned a dict, not a list"),
        (lambda prompts, completions: {1.0, 2.0}, "it returned a set, not a list"),
        (lambda prompts, completions: completions.clear() or [], "it returned 0 numbers for 2 completions"),
        (lambda prompts, completions: sys.exit("done\nwith"), "it ends the whole program (done with); a reward returns"),
        (lambda prompts, completions: sys.exit(), "it ends the whole program"),
        (awaited, "it is async, and nothing here awaits it"),
        (raising(Silent()), "Silent"),
        (raising(RuntimeError("two\nlines \x1b[31m" + "x" * 1000)), "RuntimeError: two lines"),
    ],
)
def test_what_a_program_does_wrong_is_one_line(toy_tokenizer, prompts, answers, score, said):
    with pytest.raises(UserError) as error:
        program(toy_tokenizer, score)(prompts, answers)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("reward mine:score: ") and said in str(error.value) and len(str(error.value)) <= 300


def test_a_function_of_a_module(toy_tokenizer, prompts, answers, tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text("def words(prompts, completions): return [len(t.split()) for t in completions]\nN = 1")
    (tmp_path / "ending_scores.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "broken_scores.py").write_text("import there_is_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    reward = open_reward("my_scores:words", toy_tokenizer, torch.float32, CPU)
    assert reward(prompts, answers).tolist() == [4, 1] and reward.scale == (0, 1)
    assert files_of("my_scores:words") == [tmp_path / "my_scores.py"]
    assert files_of("json.decoder:JSONDecoder")[0].name == "decoder.py" and files_of("count=the") == files_of("") == []
    for name, said in (
        ("my_scores:none", "my_scores has no function none"), ("my_scores:N", "my_scores has no function N"),
        ("broken_scores:f", "importing broken_scores: ModuleNotFoundError"), ("no_such:f", "importing no_such"),
        ("ending_scores:f", "importing ending_scores: it ends the whole program"),
        ("nothing", "no folder of this name"), ("count=", "no folder of this name"), ("a b:c", "no folder of this name"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            open_reward(name, toy_tokenizer, torch.float32, CPU)
    sys.modules.pop("my_scores")


def test_programs_that_are_shipped(toy_tokenizer, prompts, answers):
    for name, expected in (("length", [4, 1]), ("count=th", [2, 0])):
        assert open_reward(name, toy_tokenizer, torch.float32, CPU)(prompts, answers).tolist() == expected
    with pytest.raises(UserError, match="reward arithmetic: none of the questions has an expression"):
        open_reward("arithmetic", toy_tokenizer, torch.float32, CPU)(prompts, answers)


def test_arithmetic():
    questions = asked("What is 12 + 7?", "3 * (4 + 5) =", "1 / 3 + 1/6", "now -2.5 * 4.", "hello", "1 / 0", "((1 + 2)", "7 - 9")
    answers = ["19", "It is 27.", "0.5", "-10", "5", "0", "3", "The answer is -2, since 7 - 9 = -2."]
    assert reward_functions.arithmetic(questions, answers) == [1, 1, 1, 1, 0, 0, 0, 1]
    wrong = ["12 + 7 = 20", "", "one half", "10", "5", "", "", "2"]
    assert reward_functions.arithmetic(questions, wrong) == [0] * 8
    assert reward_functions.arithmetic(asked("900 + 100"), ["1,000"]) == [1]


@given(st.integers(-999, 999), st.sampled_from("+-*"), st.integers(0, 999), st.sampled_from("+-*"), st.integers(0, 999))
def test_arithmetic_has_the_values_of_python(one, first, two, second, three):
    expression = f"{one} {first} {two}{second}{three}"
    assert reward_functions.value_of(f"Tell me: {expression}?") == eval(expression)


@given(st.text(alphabet="0123456789+-*/() .,a", max_size=200))
def test_any_question_has_a_value_or_none(text):
    reward_functions.value_of(text)
    reward_functions.last_number(text)


@pytest.fixture(scope="module")
def reward_model(toy_decoder, toy_tokenizer):
    return from_policy(toy_decoder(seed=5, scale=0.1, vocab_size=toy_tokenizer.size), seed=6)


def test_a_folders_model_with_another_tokenizer_reads_the_text(toy_decoder, toy_tokenizer, prompts, answers, tmp_path):
    other = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(["path of the file returns"] * 9), 270))
    its = from_policy(toy_decoder(seed=7, scale=0.1, vocab_size=other.size), seed=6)
    model_folder.save(tmp_path, its, other, chat=True)
    reward = open_reward(str(tmp_path), toy_tokenizer, torch.float32, CPU)
    expected = score_rows(its, other, [row_of(other, asked, text) for asked, text in zip(ASKED, TEXTS, strict=True)])
    assert reward(prompts, answers).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert kind_of(str(tmp_path)) == "folder" and files_of(str(tmp_path)) == [tmp_path] and reward.scale is None
    write_json(tmp_path / "reward_scale.json", {"reward_mean": 0.5, "reward_std": 2})
    assert open_reward(str(tmp_path), toy_tokenizer, torch.float32, CPU).scale == (0.5, 2.0)
    for wrong in ({}, [], {"reward_mean": 0.0, "reward_std": 0.0}, {"reward_mean": "x", "reward_std": 1}):
        write_json(tmp_path / "reward_scale.json", wrong)
        with pytest.raises(UserError, match=r"reward_scale\.json"):
            open_reward(str(tmp_path), toy_tokenizer, torch.float32, CPU)


def test_a_model_that_writes_is_no_judge(toy_decoder, toy_tokenizer, tmp_path):
    model_folder.save(tmp_path / "writer", toy_decoder(seed=1, vocab_size=toy_tokenizer.size), toy_tokenizer, chat=True)
    with pytest.raises(UserError, match="writes text, no reward model; `groundup reward` makes one of it"):
        open_reward(str(tmp_path / "writer"), toy_tokenizer, torch.float32, CPU)


def test_the_runs_own_model_reads_the_same_ids(reward_model, toy_tokenizer, prompts, answers):
    reward = ModelReward(reward_model, (0.0, 1.0), toy_tokenizer, torch.float32)
    expected = score_rows(reward_model, toy_tokenizer, [row_of(toy_tokenizer, *pair) for pair in zip(ASKED, TEXTS, strict=True)])
    assert reward(prompts, answers).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(UserError, match="the reward model's context 64"):
        reward(prompts, [answers[0] * 20] * 2)


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is 1,000 + 5?", 1005), ("12,500 - 1,250", 11250), ("y = 2 + 3", 5),
        ("\u22123 + 5", 2), ("12 \u00d7 3", 36), ("12 \u00f7 4", 3),
        ("2 + 3, please", 5), ("2+2.", 4), ("2 + 3x", None), ("x2 + 3", None), ("3 + 4 * x", None), ("x + 2 + 3", None),
        ("2^3 + 1", None), ("5 % 3 + 1", None), ("1.000,5 + 2", None), ("1,2 + 3", None),
        ("12345678901234567.5 + (1\n+ 0.25)", Fraction("12345678901234568.75")),
        ("0.1 + 0.20000000000000000001", Fraction("0.30000000000000000001")),
    ],
)  # fmt: skip
def test_an_expression_is_taken_whole_or_not_at_all(question, value):
    assert reward_functions.value_of(question) == value


@pytest.mark.parametrize(("text", "number"), [("1.5e3", 1500), ("it is \u22125", -5), ("1,005", 1005), ("2e", 2), ("$1.50", 1.5)])
def test_the_last_number_of_an_answer(text, number):
    assert reward_functions.last_number(text) == number


def test_a_program_keeps_the_state_of_the_process_to_itself(toy_tokenizer, prompts, answers, tmp_path, monkeypatch):
    """Modules turn gradients off where they are imported, and code of answers is run in a folder of its own."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "my_changes.py").write_text(
        "import os\nimport torch\n\ndef change():\n    os.chdir('elsewhere')\n    torch.set_grad_enabled(False)\n"
        "    torch.set_default_dtype(torch.float64)\n\n"
        "change()\nos.chdir('..')\n\ndef score(prompts, completions):\n    change()\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_changes", raising=False)
    state = [tmp_path.cwd(), torch.is_grad_enabled(), torch.get_default_dtype()]
    reward = open_reward("my_changes:score", toy_tokenizer, torch.float32, CPU)
    assert [tmp_path.cwd(), torch.is_grad_enabled(), torch.get_default_dtype()] == state
    assert reward(prompts, answers).dtype == torch.float32
    assert [tmp_path.cwd(), torch.is_grad_enabled(), torch.get_default_dtype()] == state

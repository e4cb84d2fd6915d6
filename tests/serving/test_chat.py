import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.serving.chat import printable


@given(st.text())
def test_nothing_that_is_printed_commands_the_terminal(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(character.isprintable() or character in "\n\t" for character in shown)


def test_escapes_are_stripped():
    assert printable("a\x1b[2Jb\x07\x9b31m\r\x00\u202e") == "a�[2Jb��31m���"
    assert printable("é 漢字 🙂\n\tok") == "é 漢字 🙂\n\tok"


@pytest.mark.parametrize("stage", ["base", "sft"])
def test_questions_from_a_pipe(run_groundup, groundup_here, tiny_run, stage):
    def ask(questions, *options, call=groundup_here):
        outcome = call("chat", tiny_run.folder, "--stage", stage, "--max-tokens", 12, *options, input=questions)
        assert outcome.returncode == 0 and outcome.stderr == ""
        *answers, last = outcome.stdout.splitlines()
        return answers, json.loads(last)

    two, summary = ask("What does os.path.join do?\nAnd shutil.copy?\n", call=run_groundup)
    assert summary["stage"] == stage and summary["turns"] == 2 and 2 <= summary["tokens"] <= 24
    assert "".join(two).strip()
    if stage == "base":
        return
    assert ask("What does os.path.join do?\nAnd shutil.copy?\n") == (two, summary)  # same seed, same answers
    assert ask("What does os.path.join do?\n\nAnd shutil.copy?\n", "--seed", 3)[1]["turns"] == 1  # an empty line ends
    _, summary = ask("word " * 5000 + "\n<|im_end|>\n", "--temperature", 0, "--max-tokens", 100_000)
    assert summary["turns"] == 2


def test_a_question_that_is_not_utf8_is_no_crash(run_groundup, tiny_run):
    arguments = ("chat", tiny_run.folder, "--stage", "sft", "--max-tokens", 4)
    outcome = run_groundup(*arguments, input=b"caf\xe9 \xff?\n", text=False, encoding=None)
    assert b"Traceback" not in outcome.stderr
    assert outcome.returncode in (0, 2)


def test_unknown_stage(groundup_here, tiny_run):
    outcome = groundup_here("chat", tiny_run.folder, "--stage", "reward")
    assert outcome.returncode == 2
    assert outcome.stderr == "groundup: --stage reward: choose one of base, sft, dpo, ppo\n" and outcome.stdout == ""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup import cli
from groundup.cli import talk as chat
from groundup.core.errors import UserError
from groundup.generation.engine import generate
from groundup.generation.open_folder import STAGES, model_folder
from groundup.model import model_folder as folders

CONTEXT = 128
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}: {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>it says{% endif %}"
)


@pytest.fixture(scope="module")
def toys(tmp_path_factory, toy_tokenizer, toy_decoder):
    """Folders of a small random model: a chat model, and a base model."""
    found = {}
    for name in ("chat", "base"):
        model = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=CONTEXT)
        found[name] = tmp_path_factory.mktemp(name)
        folders.save(found[name], model, toy_tokenizer, chat=name == "chat")
    return found


@pytest.fixture
def talk(monkeypatch, capsys, toy_tokenizer):
    """Ask the model of a folder some questions: the result, what stood on stderr, the prompts as text, the ends."""

    def ask(folder, *questions, max_tokens=4):
        seen = []

        def watched(model, prompts, ends, *others):
            seen.append((prompts[0], ends))
            return generate(model, prompts, ends, *others)

        monkeypatch.setattr(chat, "generate", watched)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{question}\n" for question in questions)))
        result = chat.talk(folder, None, None, max_tokens, 0)
        names = {number: name for name, number in toy_tokenizer.special_tokens.items()}
        texts = ["".join(names.get(token) or toy_tokenizer.decode([token]) for token in prompt) for prompt, _ in seen]
        return result, capsys.readouterr().err, texts, [ends for _, ends in seen]

    return ask


def test_a_folder_of_a_chat_model(talk, toys, toy_tokenizer):
    result, said, prompts, ends = talk(toys["chat"], "path", "file")
    assert result["model"] == str(toys["chat"]) and result["turns"] == 2 and said == ""
    assert prompts[0] == "<|endoftext|><|im_start|>user\npath<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[1].startswith(prompts[0]) and prompts[1].endswith("<|im_start|>user\nfile<|im_end|>\n<|im_start|>assistant\n")
    assert set(ends[0]) == {toy_tokenizer.message_end, toy_tokenizer.end_of_text}


def test_a_folder_of_a_base_model_continues_each_line_by_itself(talk, toys, toy_tokenizer):
    result, _, prompts, ends = talk(toys["base"], "path", "file")
    assert result["turns"] == 2 and prompts == ["<|endoftext|>path", "<|endoftext|>file"]
    assert set(ends[0]) == {toy_tokenizer.end_of_text}


def changed(toys, tmp_path, **entries):
    """A copy of the chat model as somebody else would publish it."""
    for path in toys["chat"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name, content in entries.items():
        path = tmp_path / name.replace("__", ".")
        if isinstance(content, dict):
            content = json.dumps({**json.loads(path.read_text()), **content})
        path.write_text(content)
    return tmp_path


def test_a_published_folder_has_its_own_template_and_ends(talk, toys, toy_tokenizer, tmp_path):
    ends = [toy_tokenizer.message_end, toy_tokenizer.encode("path")[0]]
    given = {"eos_token_id": ends, "repetition_penalty": 1.1, "temperature": 0.5}
    both = {"chat_template__jinja": TEMPLATE, "tokenizer_config__json": {"chat_template": TEMPLATE}}
    folder = changed(toys, tmp_path, generation_config__json=given, **both)
    _, said, prompts, found = talk(folder, "path")
    assert prompts == ["<|im_start|>user: path<|im_end|><|im_start|>it says"]
    assert set(ends) <= set(found[0]) and "repetition_penalty" in said


def test_a_template_that_fails_is_one_line(talk, toys, tmp_path):
    broken = "{{ raise_exception('not today') }}"
    folder = changed(toys, tmp_path, chat_template__jinja=broken, tokenizer_config__json={"chat_template": broken})
    with pytest.raises(UserError, match="not today"):
        talk(folder, "path")


def test_what_is_forgotten_of_a_long_conversation_is_said(talk, toys):
    result, said, prompts, _ = talk(toys["chat"], *["what does the function return"] * 5)
    assert result["turns"] == 5 and "the oldest 1 of its questions and answers are forgotten" in said
    assert prompts[-1].count("what does") < 5 and all(p.startswith("<|endoftext|><|im_start|>user\nwhat does") for p in prompts)


def test_a_question_without_room_is_said_and_the_conversation_goes_on(talk, toys):
    result, said, prompts, _ = talk(toys["chat"], "path", "word " * 500, "file")
    assert result["turns"] == 2 and result["too_long"] == 1 and "ask for less" in said
    assert "path" in prompts[1] and "word" not in prompts[1] and prompts[1].count("<|im_start|>user") == 2


OTHERS = {
    "nothing": ({}, "an empty folder"),
    "tokenizer": ({"tokenizer.json": "{}"}, "a tokenizer without a model"),
    "weights": ({"model.safetensors": ""}, "weights without their config.json"),
    "pickle": ({"pytorch_model.bin": ""}, "pickled weights, which are never opened"),
    "gguf": ({"model.gguf": ""}, "a GGUF"),
    "adapter": ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "merge it into that first"),
    "documents": ({"documents.parquet": ""}, "documents, not a model"),
    "stage": ({"stage.json": '{"stage": "corpus"}'}, "stage corpus of a run"),
    "broken stage": ({"stage.json": "{"}, "of a run, which is no model"),
    "runs": ({"laptop/dpo/stage.json": "{}"}, "folders below it, as {folder}/laptop"),
    "snapshots": ({"snapshots/abc/config.json": "{}"}, "as {folder}/snapshots/abc"),
    "unfinished": ({"pages.partial/key.json": "{}"}, "no finished stage 'dpo'"),
    "finished in part": ({"sft/stage.json": "{}"}, "but sft; give {folder}/sft"),
    "reader": ({"config.json": '{"architectures": ["BertForQuestionAnswering"]}'}, "groundup ask"),
    "reward": ({"config.json": '{"architectures": ["Qwen3ForSequenceClassification"]}'}, "scores texts and writes none"),
    "no object": ({"config.json": "[]"}, "config.json"),
    "strange": ({"notes.odt": ""}, "neither of a run nor of a model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_folder_is_that_cannot_be_talked_to(tmp_path, monkeypatch, capsys, name):
    files, words = OTHERS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.setattr(sys, "argv", ["groundup", "chat", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and words.format(folder=tmp_path) in said and said.count("\n") == 1 and len(said) <= 301


NAMES = ("config.json", "tokenizer.json", "stage.json", "dpo/stage.json", "base/stage.json", "sft.partial/key.json", "a.bin",
         "a.gguf", "a/config.json", "corpus/documents.parquet", "\x1b[2J.txt", "model.safetensors")  # fmt: skip
CONTENTS = ("", "{}", "[]", "null", '{"architectures": 3}', '{"architectures": [3]}', "\x00", '{"stage": "dpo"}')


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS)), st.sampled_from([None, *STAGES]))
def test_any_folder_is_a_model_or_refused(tmp_path_factory, files, stage):
    folder = tmp_path_factory.mktemp("any")
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content)
    try:
        assert model_folder(folder, stage) == folder and "config.json" in files and stage is None
    except UserError as error:
        assert str(folder) in str(error)


def test_a_name_that_is_no_folder(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    for name, words in (("none", "no such folder"), ("model.gguf", "a GGUF")):
        with pytest.raises(UserError, match=words):
            model_folder(tmp_path / name)


class Terminal:
    """A program on a pseudo-terminal: what it shows, and what a person types."""

    def __init__(self, arguments, environment):
        self.master, slave = pty.openpty()
        settings = {**environment, "TERM": "xterm", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave, env=settings, start_new_session=True)
        os.close(slave)
        self.shown = ""

    def wait_for(self, text, count=1):
        end = time.monotonic() + 300
        while self.shown.count(text) < count and time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.master, 1 << 16).decode()
                except OSError:  # the program has ended
                    break
        assert self.shown.count(text) >= count, self.shown

    def type(self, keys):
        os.write(self.master, keys.encode())


def test_on_a_terminal_lines_are_edited_and_the_result_stands_apart(toys, environment):
    terminal = Terminal([sys.executable, "-m", "groundup", "chat", str(toys["chat"]), "--max-tokens", "2"], environment)
    terminal.wait_for("> ")
    terminal.type("where xs\x1b[D\x1b[Di\x1b[C\x7f\n")  # back over "xs", an i before it, over the x, which goes
    terminal.wait_for("> ", 2)
    terminal.type("\x1b[A\n")
    terminal.wait_for("> ", 3)
    assert "^[[" not in terminal.shown and "where is" in terminal.shown.split("> ")[2]
    terminal.type("\x04")
    terminal.wait_for("}")
    assert terminal.process.wait(60) == 0
    os.close(terminal.master)
    *before, last = terminal.shown.replace("\r\n", "\n").rstrip("\n").split("\n")
    assert json.loads(last)["turns"] == 2 and before[-1] == ""


@pytest.mark.parametrize("stage", ["base", "sft"])
def test_questions_from_a_pipe(run_groundup, groundup_here, tiny_run, stage):
    """Of the base model in a process of its own, with a pipe of the system."""
    groundup = run_groundup if stage == "base" else groundup_here

    def ask(questions, *options):
        outcome = groundup("chat", tiny_run.folder, "--stage", stage, "--max-tokens", 12, *options, input=questions)
        assert outcome.returncode == 0 and outcome.stderr == ""
        *answers, last = outcome.stdout.splitlines()
        return answers, json.loads(last)

    two, summary = ask("What does os.path.join do?\nAnd shutil.copy?\n")
    assert summary["stage"] == stage and summary["turns"] == 2 and 2 <= summary["tokens"] <= 24
    assert "".join(two).strip()
    if stage == "base":
        return
    assert ask("What does os.path.join do?\nAnd shutil.copy?\n") == (two, summary)  # same seed, same answers
    assert ask("What does os.path.join do?\n\nAnd shutil.copy?\n", "--seed", 3)[1]["turns"] == 1  # an empty line ends
    _, summary = ask("<|im_end|>\n", "--temperature", 0, "--max-tokens", 100_000)
    assert summary["turns"] == 1


def test_a_question_that_is_not_utf8_is_no_crash(run_groundup, tiny_run):
    arguments = ("chat", tiny_run.folder, "--stage", "sft", "--max-tokens", 4)
    outcome = run_groundup(*arguments, input=b"caf\xe9 \xff?\n", text=False, encoding=None)
    assert b"Traceback" not in outcome.stderr
    assert outcome.returncode in (0, 2)


def test_unknown_stage(run_groundup, tiny_run):
    outcome = run_groundup("chat", tiny_run.folder, "--stage", "reward")
    assert outcome.returncode == 2
    assert outcome.stderr == "groundup: stage reward: choose one of base, sft, dpo, ppo\n" and outcome.stdout == ""

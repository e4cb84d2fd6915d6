"""Self-instruct against a server on loopback that answers as models do: well, badly, the same again, and sometimes not at all."""

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundup.core import openai_address
from groundup.core.errors import UserError
from groundup.data.contracts import read_conversations
from groundup.model import model_folder as folders
from groundup.posttraining.completion_clients import (
    CUT,
    REFUSED,
    STOPPED,
    AnswerLog,
    Completion,
    PromptRequest,
    ServedClient,
    open_client,
)
from groundup.posttraining.rouge import f1, lcs_length, tokens
from groundup.posttraining.self_instruct import SelfInstructSettings, read_seeds, self_instruct
from groundup.posttraining.task_prompts import Instance, read_instances, read_instructions, says_yes

PARTS = ["Input:", "Output:", "Class label: ", "Example 2\n", "\n", "10. ", "a", "ä\0", "\ufffd", ":"]
WORDS = [f"{a}{b}" for a in ("ba", "ke", "lo", "mi", "nu", "ra", "so", "ti") for b in ("bar", "den", "gol", "kim", "pen", "tas")]


def made(drawn, shown):
    """Most of the instructions are new, some like one that was shown, some of no use."""
    kind = drawn.random()
    if kind < 0.15:
        return f"{drawn.choice(shown)} please"
    if kind < 0.3:
        return drawn.choice(["Sing.", "Draw the house of your aunt", "- one two three four", "a " * 200, "Is \0 a letter or no?"])
    return " ".join(drawn.choice(WORDS) for _ in range(drawn.randrange(5, 12)))


def answer(prompt):
    """(text, finish reason): a function of the prompt."""
    drawn = random.Random(hashlib.blake2b(prompt.encode()).digest())
    if prompt.startswith("Come up with a series"):
        shown = [re.sub(r"^\d+\. ", "", line) for line in prompt.split("\n")[2:-1]]
        lines = [made(drawn, shown) for _ in range(8)]
        text = f" {lines[0]}\n" + "\n".join(f"{number}. {line}" for number, line in enumerate(lines[1:], start=10))
        return (text, "length") if drawn.random() < 0.2 else (text, "stop")
    if prompt.startswith("Can the following"):
        return drawn.choice([" Yes", " No", " No", " Perhaps"]), "length"
    word = drawn.choice(WORDS)
    if prompt.startswith("Given a classification"):
        return f" {word}\nInput: the first\nClass label: other\nInput: the {word}\n", "stop"
    return drawn.choice(
        [f"Input: {word}\nOutput: so\n\nExample 2\nOutput: and\n", f"Output: {word}", word, "Input: nothing comes of it", ""]
    ), "stop"  # fmt: skip


class Listener(ThreadingHTTPServer):
    request_queue_size = 128  # of 5, the library's, many at once are reset


class Server:
    """Counts what it answered with 200, by request. `hold`: the number of the request from which on all wait until `release`."""

    def __init__(self, hold=0, trouble=True):
        self.hold, self.trouble = hold, trouble
        self.answered, self.statuses, self.seen = Counter(), Counter(), []
        self.lock, self.release = threading.Lock(), threading.Event()

    def status(self, content):
        with self.lock:
            again = content in self.seen
            self.seen.append(content)
            number = len(self.seen)
        if self.hold and number >= self.hold and not self.release.is_set():
            self.release.wait()
            return 0
        if not self.trouble:
            return 200
        if "ragol" in content["prompt"].split("Task:")[-1][:60]:
            return 400
        if again:  # threads that keep step may meet the same troubled numbers at every attempt, until they give up
            return 200
        return 429 if number % 7 == 0 else 500 if number % 11 == 0 else 200

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                content = json.loads(raw)
                status = outer.status(content)
                if not status:
                    return
                chat = "messages" in content
                text, reason = answer(content["messages"][0]["content"] if chat else content["prompt"])
                choice = {"message": {"content": text}} if chat else {"text": text}
                found = {"choices": [{**choice, "finish_reason": reason}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
                body = json.dumps(found if status == 200 else {"error": {"message": "no"}}).encode()
                with outer.lock:
                    outer.statuses[status] += 1
                    outer.answered[raw] += status == 200
                self.send_response(status)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = Listener(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1#stub"
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch, replace_time):
    replace_time(openai_address, sleep=lambda _: None)
    monkeypatch.setenv("no_proxy", "*")


def twenty(tmp_path):
    path = tmp_path / "seeds.jsonl"
    rows = [
        {"instruction": one.instruction, "is_classification": one.is_classification,
         "instances": [{"input": pair.input, "output": pair.output} for pair in one.instances]}
        for one in read_seeds()[:20]
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_two_hundred_of_twenty_killed_and_resumed(environment, groundup_here, tmp_path):
    seeds, out, log = twenty(tmp_path), tmp_path / "out", tmp_path / "out" / "answers.jsonl"

    def command(server):
        return ["self-instruct", server.address, "--seeds", seeds, "--out", out, "--input-price", "3", "--output-price", "15"]

    with Server(hold=70) as first:
        killed = subprocess.Popen(
            [sys.executable, "-m", "groundup", *map(str, command(first))], env={**environment, "no_proxy": "*"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        waiting = threading.Event()
        # All that was answered is kept before anything else is asked for.
        while first.statuses.total() < 69 or log.read_bytes().count(b"\n") < first.answered.total():
            assert killed.poll() is None
            waiting.wait(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        before = +first.answered
    with log.open("ab") as file:
        file.write(b'{"key": "cut by the ki')
    with Server() as second:  # the same model, at another address
        done = groundup_here(*command(second), "--at-once", "3")
        assert done.returncode == 0, done.stderr
        assert "damaged answers, which are asked for again: 1" in done.stderr
        assert before and +second.answered and max((before + second.answered).values()) == 1
        assert second.statuses.keys() == {200, 400, 429, 500}
        found = json.loads(done.stdout.splitlines()[-1])
        asked = second.statuses.total()
        again = groundup_here(*command(second))
        assert json.loads(again.stdout.splitlines()[-1]) | {"seconds": 0} == found | {"seconds": 0}
        assert second.statuses.total() == asked

    assert (found["instructions"], found["wanted"], found["seeds"]) == (200, 200, 20)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(found["requests"].values()) == len(rows)
    counted = sum(row["answer"]["end"] != REFUSED for row in rows)
    assert found["tokens"] == {"prompt": 10 * counted, "answer": 5 * counted, "answers_not_counted": len(rows) - counted}
    assert found["dollars"] == pytest.approx((30 + 75) * counted / 1e6, abs=1e-6)
    ends = found["dead_ends"]
    assert {"like another", "too short", "too long", "damaged text", "about what is no text", "begins with punctuation",
            "cut at the longest answer"} <= ends["instructions"].keys()  # fmt: skip
    assert {"neither yes nor no: taken as no"} == ends["classification"].keys()
    assert {"no output", "empty answer", "refused by the server", "instructions without an instance"} <= ends["instances"].keys()
    asked = [row["ask"]["prompt"] for row in rows if row["ask"]["max_tokens"] == 3]
    kept = [tokens(prompt.rpartition("Task:")[2].partition("\n")[0]) for prompt in asked]
    assert len(kept) == 200
    every = kept + [tokens(one.instruction) for one in read_seeds(seeds)]
    for one, other in combinations(every, 2):
        if len(set(one) & set(other)) > 2 and other not in every[200:]:
            assert f1(lcs_length(one, other), len(one), len(other)) < 0.7
    conversations = read_conversations([out / "conversations.jsonl"])
    assert len(conversations.rows) == found["conversations"] and not conversations.dropped
    assert len(read_seeds(out / "instructions.jsonl")) == 200 - ends["instances"]["instructions without an instance"]

    with Server() as server:  # the same answers give the same bytes, whoever was killed
        fresh = tmp_path / "fresh"
        self_instruct(ServedClient(server.address, False), fresh, SelfInstructSettings(at_once=16), seeds)
    for name in ("conversations.jsonl", "instructions.jsonl"):
        assert (fresh / name).read_bytes() == (out / name).read_bytes()


def test_chat_servers_are_asked_as_such(tmp_path):
    with Server(trouble=False) as server:
        found = self_instruct(ServedClient(server.address, chat=True), tmp_path, SelfInstructSettings(count=5))
        assert all(set(content) >= {"messages"} and "prompt" not in content for content in server.seen)
    assert found["instructions"] == 5


def test_one_of_our_folders(toy_decoder, toy_tokenizer, tmp_path):
    """Nothing comes of a random model; its answers are its own, whoever is decoded beside it."""
    model = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256)
    folders.save(tmp_path / "m", model, toy_tokenizer, chat=True)
    prompts = ["what does", "it returns", "what does"]
    requests = [PromptRequest(prompt, 12, ("\n",), 1.0, seed=seed) for seed, prompt in enumerate(prompts)]
    found = []
    for at_once in (1, 3):
        with open_client(str(tmp_path / "m"), False, at_once) as client:
            found.append(AnswerLog(tmp_path / f"{at_once}.jsonl", client, at_once).complete(requests))
    assert found[0] == found[1] and found[0][0] != found[0][2]
    assert all("\n" not in one.text and one.prompt_tokens and 0 < one.answer_tokens <= 12 for one in found[0])
    with open_client(str(tmp_path / "m"), True, 2) as client:
        assert client(requests[0]).prompt_tokens > found[0][0].prompt_tokens  # in the chat template
        assert client(PromptRequest("path " * 300, 12, ())).end == REFUSED
        with pytest.raises(UserError, match=r"no conversation came of|every request is refused"):
            self_instruct(client, tmp_path / "out", SelfInstructSettings(count=2, max_tokens=4, shown=1))


class Stubborn:
    key = "stub"

    def __init__(self, *answers):
        self.answers, self.asked = answers, 0

    def __call__(self, ask):
        self.asked += 1
        if not self.answers:
            raise UserError("no answer")
        return self.answers[min(self.asked, len(self.answers)) - 1]


def test_a_model_without_ideas_comes_to_an_end(tmp_path, caplog):
    ideas = [Completion(" Name a word that rhymes with another\n", STOPPED)] * 55
    client = Stubborn(*ideas, Completion("No", STOPPED), Completion("Output: hand", STOPPED))
    found = self_instruct(client, tmp_path, SelfInstructSettings(count=3, at_once=1))
    assert (found["instructions"], found["conversations"]) == (1, 1) and client.asked < 70
    assert "1 instructions instead of 3" in caplog.text
    with pytest.raises(UserError, match="no conversation came of 50 requests; dead ends: empty answer: 50"):
        self_instruct(Stubborn(Completion("", STOPPED)), tmp_path / "b", SelfInstructSettings(count=3))


def test_what_every_request_is_refused_for_is_said_and_not_kept(tmp_path):
    with pytest.raises(UserError, match="every request is refused: too long"):
        self_instruct(Stubborn(Completion("too long", REFUSED)), tmp_path, SelfInstructSettings())
    assert not (tmp_path / "answers.jsonl").exists()


def test_answers_before_trouble_are_kept_and_damaged_ones_are_not_believed(tmp_path):
    path, requests = tmp_path / "answers.jsonl", [PromptRequest(text, 3, ()) for text in "abc"]
    first = Stubborn(Completion("x", STOPPED))
    AnswerLog(path, first, 2).complete(requests[:2])
    with pytest.raises(UserError, match="no answer"):
        AnswerLog(path, Stubborn(), 1).complete(requests)
    path.write_bytes(path.read_bytes().replace(b'"text": "x"', b'"text": "y"', 1).removesuffix(b"\n"))
    second = Stubborn(Completion("z", STOPPED))
    assert [one.text for one in AnswerLog(path, second, 1).complete(requests)] == ["z", "x", "z"]
    assert second.asked == 2 and path.read_bytes().count(b"\n") == 3


def read(text, classification=False, end=STOPPED):
    return read_instances(Completion(text, end), "Do it.", classification)


def test_instances():
    assert read("Input: a\nOutput: b\nExample 2\nInput: c\nOutput: d\n") == ([Instance("a", "b"), Instance("c", "d")], [])
    assert read("Input: N/A\nOutput: b") == ([Instance("", "b")], [])
    assert read("Output: several\nlines\n\nand more") == ([Instance("", "several\nlines\n\nand more")], [])
    assert read("Input: a\nOutput: b\nExample 2\nInput: a\nOutput: c")[0] == []
    cut = read("Input: a\nOutput: b\nExample 2\nInput: c\nOutput: d e", end=CUT)
    assert cut == ([Instance("a", "b")], ["cut at the longest answer"])
    assert read("Input: a\nOutput: a")[1] == ["an output that repeats the question"]
    assert read("Input: a\nOutput: these are:")[1] == ["unfinished"]
    labelled = read(" glad\nInput: yes!\nClass label: sad\nInput: oh", True)
    assert labelled == ([Instance("yes!", "glad"), Instance("oh", "sad")], [])
    assert read(" glad\nClass label: sad", True)[1] == ["a label without input"] * 2


def test_instructions():
    text = " name three NASA missions of the year.\n10) Sing.\n11. write a program to add two numbers\n12. What is the"
    good, ends = read_instructions(Completion(text, CUT))
    assert good == ["Name three NASA missions of the year."]
    assert Counter(ends) == Counter(["too short", "write a program", "cut at the longest answer"])
    assert read_instructions(Completion("1. 给出三个保持健康的建议", STOPPED))[0] == ["给出三个保持健康的建议"]
    assert [says_yes(Completion(text, STOPPED)) for text in (" Yes.", "no", "Yesterday", "")] == [True, False, None, None]


@settings(max_examples=60)
@example("Example 1\n", CUT)
@given(
    st.lists(st.sampled_from(PARTS)).map("".join) | st.text(), st.sampled_from([STOPPED, CUT, REFUSED])
)
def test_any_answer_is_read(text, end):
    given = Completion(text, end)
    good, ends = read_instructions(given)
    assert good or ends
    for classification in (False, True):
        found, ends = read_instances(given, "Do it.", classification)
        assert (found or ends) and all(one.output.strip() for one in found)
    says_yes(given)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"instruction": "Do."}', "an instance without output|each instance must have"),
        ('{"instruction": 3, "output": "a"}', "instruction must be text"),
        ('{"instruction": "Do.", "instances": []}', "each instance must have"),
        ('{"instruction": "Do.", "instances": [{"input": "", "output": " "}]}', "an empty output"),
        ('{"instruction": "Do.", "output": "a", "is_classification": "perhaps"}', "neither true nor false"),
        ("", "no rows"),
        ("just a text", "no rows|JSON"),
    ],
)
def test_seeds_that_are_none(content, said, tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_seeds(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_bad_seeds_among_good_ones_are_said(tmp_path, caplog):
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Do it.", "input": null, "output": "a"}\n{"instruction": "Do it."}\n')
    assert [one.instances for one in read_seeds(path)] == [(Instance("", "a"),)]
    assert "passed over: an instance without output: 1" in caplog.text


def test_half_a_character_in_a_seed_or_a_refusal_is_replaced(monkeypatch, tmp_path):
    path, out = tmp_path / "seeds.jsonl", tmp_path / "out"
    path.write_text(json.dumps({"instruction": "Do \ud800 it.", "input": "\ud800", "output": "a \udfff"}))
    client = Stubborn(Completion(" Name a word that rhymes with another\n", STOPPED), Completion("Output: hand", STOPPED))
    assert self_instruct(client, out, SelfInstructSettings(count=1, at_once=1), path)["conversations"] == 1
    assert "Do \ufffd it." in (out / "answers.jsonl").read_text(encoding="utf-8")
    assert read_seeds(path)[0].instances == (Instance("\ufffd", "a \ufffd"),)

    def refuse(*_):
        raise openai_address.RequestRefused("too \ud800 long")

    served = ServedClient("http://127.0.0.1:9/v1#m", False)
    monkeypatch.setattr(served, "request", refuse)
    assert served(PromptRequest("a", 1, ())) == Completion("too \ufffd long", REFUSED)


@pytest.mark.parametrize("found", [{}, {"choices": [{}]}, {"choices": [{"text": 3}]}, {"choices": "x"}])
def test_an_answer_that_is_none_is_one_line(found, monkeypatch):
    client = ServedClient("http://127.0.0.1:9/v1#m", False)
    monkeypatch.setattr(client, "request", lambda *_: found)
    with pytest.raises(UserError, match="an answer without text"):
        client(PromptRequest("a", 1, ()))
    monkeypatch.setattr(client, "request", lambda *_: {"choices": [{"text": "\ud800"}], "usage": {"prompt_tokens": "many"}})
    assert client(PromptRequest("a", 1, ())) == Completion("\ufffd", STOPPED)

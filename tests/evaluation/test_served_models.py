"""An OpenAI-compatible address: a server on loopback over a toy model; and whatever else a server may answer."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core import openai_address
from groundup.core.errors import UserError
from groundup.data.messages import BadRow
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation.open_model import open_model
from groundup.evaluation.scoring import CONVENTIONS, records_of
from groundup.evaluation.served_models import RemoteModel
from groundup.evaluation.tasks import load, open_task
from groundup.model import model_folder


@pytest.fixture(scope="module")
def ours(toy_decoder, toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "model"
    model_folder.save(path, toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256), toy_tokenizer, chat=False)
    return open_model(str(path))


class Server:
    """Answers as `respond` says: (status, content, headers) of (path, request)."""

    def __init__(self, respond):
        self.respond, self.seen, self.given = respond, [], []

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                outer.seen.append(content)
                outer.given.append(dict(self.headers))
                status, answer, *headers = outer.respond(self.path, content)
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers[0].items() if headers else ():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch, replace_time):
    waits = []
    replace_time(openai_address, sleep=waits.append)
    monkeypatch.setenv("no_proxy", "*")
    return waits


def completions(ours):
    """What a server over `ours` answers: the prompt's tokens after its first one, with their probabilities."""
    tokenizer = ours.tokenizer

    def choice(number, prompt, request):
        ids = tokenizer.encode(prompt)
        if len(ids) > 250:
            return None
        if not request.get("echo"):
            [(text, _)] = ours.written([prompt], request.get("stop", []), request["max_tokens"], 1)
            return {"index": number, "text": text}
        text, offsets, nats, tops = "", [], [], []
        with torch.no_grad():
            logp = ours.model(torch.tensor([ids]))[0].log_softmax(-1)
        for place, token in enumerate(ids):
            piece = tokenizer.decode([token])
            offsets.append(len(text))
            text += piece
            nats.append(float(logp[place - 1, token]) if place else None)
            best = int(logp[place - 1].argmax())
            tops.append({tokenizer.decode([best]): float(logp[place - 1, best]), piece: nats[-1]} if place else None)
        noted = {"tokens": [tokenizer.decode([one]) for one in ids] + ["x"], "token_logprobs": [*nats, -1.0],
                 "top_logprobs": [*tops, {"x": -1.0}], "text_offset": [*offsets, len(prompt)]}  # fmt: skip
        return {"index": number, "text": text + "x", "logprobs": noted}

    def respond(path, request):
        if path == "/v1/models":
            return 200, {"data": [{"id": "toy"}]}
        choices = [choice(number, prompt, request) for number, prompt in enumerate(request["prompt"])]
        if None in choices:
            return 400, {"error": {"message": "the prompt is longer than the context"}}
        return 200, {"choices": choices[::-1]}

    return respond




@pytest.fixture(scope="module")
def server(ours):
    with Server(completions(ours)) as found:
        yield found


def test_scores_are_those_of_the_model_behind_it(server, ours):
    model = open_model(server.address)
    assert model.model == "toy"
    pairs = [("the path", " of the file"), ("what does it", " return"), ("", "it returns"), ("the file", "\n")]
    opening, ours.opening = ours.opening, []  # the server puts nothing before a prompt
    try:
        direct = ours.continuations([(context or "\n", continuation) for context, continuation in pairs], 4)
    finally:
        ours.opening = opening
    for one, other in zip(model.continuations(pairs, 3), direct, strict=True):
        if other.tokens == one.tokens:  # no token spans the border
            assert one.nats == pytest.approx(other.nats, abs=1e-4) and one.greedy == other.greedy
    assert sum(a.tokens == b.tokens for a, b in zip(model.continuations(pairs, 3), direct, strict=True)) >= 3


def test_a_task_by_the_command(server, ours, tmp_path):
    rows = [{"text": "it returns the path of the file"}, {"text": "what " * 400 + "path"}, {"text": "the path of it"}]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    name = f"{server.address}#toy"
    found = evaluation.evaluate([name, str(ours.folder)], ["lambada"], tmp_path / "lambada.jsonl", out=out)
    assert [one["n"] for one in found["results"]] == [2, 3]
    assert found["results"][0]["skipped"] == {"the server refuses it: 400 the prompt is longer than the context": 1}
    before = len(server.seen)
    assert evaluation.evaluate([name, str(ours.folder)], ["lambada"], tmp_path / "lambada.jsonl", out=out) == found
    assert len(server.seen) == before  # it resumes


def test_choices_and_generation(server, tmp_path):
    row = {"subject": "s", "question": "What?", "A": "it", "B": "the path", "C": "of", "D": "def", "answer": "C"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    task = open_task("mmlu", tmp_path / "q.jsonl", few_shot=0)
    [record] = records_of(RemoteModel(f"{server.address}#toy"), task, load(task).rows)
    assert all(rule(record) in range(-1, 4) for rule in CONVENTIONS.values())
    [(text, cut)] = RemoteModel(f"{server.address}#toy").written(["the path"], ["\n"], 4, 1)
    assert "\n" not in text and not cut


def good(prompts):
    noted = {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0, -2.0], "top_logprobs": [None, {"b": -1.0}, {"d": -0.5}],
             "text_offset": [0, 1, 2]}  # fmt: skip
    return {"choices": [{"index": n, "text": "abc", "logprobs": noted} for n in range(len(prompts))]}


def test_tokens_of_the_answer_are_found_by_their_places(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Server(lambda _, request: (200, good(request["prompt"]))) as server:
        model = RemoteModel(f"{server.address}#m")
        [one] = model.continuations([("a", "b")], 1)  # the third is generated
        assert (one.nats, one.greedy, one.tokens, one.likeliest_text) == (-1.0, True, 1, "b")
        [one] = model.continuations([("a", "bc")], 1)
        assert (one.nats, one.greedy, one.tokens) == (-3.0, False, 2)
        assert server.given[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("tokens", "spelt"),
    [
        (["<s>", "The", " answer", ":", " no", "x"], True),  # the token that begins all texts is none of the prompt
        (["<s>", "The", "answer", ":", "no", "x"], True),  # each decoded by itself, as SentencePiece's
        (["The", " answer", ":", " no", "x"], True),
        (["The", " answer", ":", "\ufffd", " no", "x"], False),  # a part of a character
        (["<s>", "x"], None),  # without the prompt
        (["x"], None),
    ],
)
def test_places_that_are_sums_of_lengths(tokens, spelt):
    """As vLLM's text_offset: with a first token in it that the prompt has not, each would be some characters off."""
    prompt, nats = "The answer: no", [None, *(-float(n) for n in range(1, len(tokens)))]
    noted = {"tokens": tokens, "token_logprobs": nats, "text_offset": [len("".join(tokens[:n])) for n in range(len(tokens))],
             "top_logprobs": [one and {"a": 0.0} for one in nats]}  # fmt: skip
    model = RemoteModel("http://127.0.0.1:9/v1#m")
    echoed = "x" if spelt is None else f"{prompt}x"
    model.request = lambda *_: {"choices": [{"index": 0, "text": echoed, "logprobs": noted}]}
    if spelt is None:
        with pytest.raises(UserError, match="the prompt is not echoed"):
            model.continuations([(prompt[:11], prompt[11:])], 1)
        return
    [one] = model.continuations([(prompt[:11], prompt[11:])], 1)
    assert (isinstance(one, BadRow) and "do not spell" in one.reason) if not spelt else (one.tokens, one.nats) == (1, nats[-2])


def test_a_prompt_that_the_server_refuses_is_one_skipped_question(server, tmp_path):
    """Of answers that are written, too."""
    rows = [{"question": "what?", "answer": "#### 1"}, {"question": "what " * 400, "answer": "#### 2"}]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = f"{server.address}#toy"
    [result] = evaluation.evaluate([name], ["gsm8k"], tmp_path, few_shot=0)["results"]
    assert result["n"] == 1 and result["skipped"] == {"the server refuses it: 400 the prompt is longer than the context": 1}
    rows = [{"question": row["question"], "exists": True, "answer": "it"} for row in rows]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [result] = evaluation.evaluate([name], ["existence"], tmp_path / "own.jsonl")["results"]
    assert result["n"] == 1 and sum(result["skipped"].values()) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(status, quick, caplog):
    answers = [(status, {}, {"Retry-After": "7"}), (status, {}, {"Retry-After": "\xb2"}), (status, b"no json")]
    with Server(lambda _, request: answers.pop(0) if answers else (200, good(request["prompt"]))) as server:
        [one] = RemoteModel(f"{server.address}#m").continuations([("a", "b")], 1)
    assert one.nats == -1.0 and quick == [7.0, 2.0, 4.0]
    assert sum(f"{status}" in record.getMessage() and "tried again in" in record.getMessage() for record in caplog.records) == 3


def test_a_server_that_never_answers_is_one_line(quick, monkeypatch):
    def late(*_, **__):
        raise TimeoutError("timed out")

    model = RemoteModel("http://127.0.0.1:9/v1#m")
    monkeypatch.setattr(model, "_open", late)
    with pytest.raises(UserError, match="no answer in 6 attempts: timed out"):
        model.continuations([("a", "b")], 1)
    assert quick == [1, 2, 4, 8, 16]


def changed(**changes):
    answer = good(["x"])
    noted = answer["choices"][0]["logprobs"]
    for name, value in changes.items():
        noted[name] = value
    return answer


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, {"error": {"message": "no key"}}, "the server answers 401 no key"),
        (404, b"<html>", "the server answers 404"),
        (302, {}, "the server answers 302"),
        (200, b"<html>", "no JSON object"),
        (200, [1], "no JSON object"),
        (200, {"choices": []}, "1 prompts, but choices"),
        (200, {"choices": [{"index": 0, "text": "b"}]}, "no logprobs in the answer"),
        (200, changed(top_logprobs=None), "logprobs lack"),
        (200, changed(token_logprobs=[None, None, -1.0]), "without its probability"),
        (200, changed(token_logprobs=[None, float("nan"), -1.0]), "without its probability"),
        (200, changed(top_logprobs=[None, {"b": "x"}, {}]), "without its probability"),
        (200, changed(token_logprobs=[-1.0]), "different lengths"),
        (200, changed(text_offset=["x", 1, 2]), "no number"),
        (200, changed(tokens=["z"], token_logprobs=[-1.0], top_logprobs=[{"z": -1.0}], text_offset=[2]), "not echoed"),
        (200, changed(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[]), "not echoed"),
    ],
)
def test_what_cannot_be_used_is_one_line(status, answer, said):
    with (
        Server(lambda *_: (status, answer, {"Location": "http://127.0.0.1:9/"})) as server,
        pytest.raises(UserError, match=said) as caught,
    ):
        RemoteModel(f"{server.address}#m").continuations([("a", "b")], 1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["", "a", "b"]),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "index", "tokens"]), some, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["tokens", "token_logprobs", "top_logprobs", "text_offset"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, anything, max_size=4), anything)
def test_any_answer_ends_in_a_score_or_one_line(changes, other):
    model = RemoteModel("http://127.0.0.1:9/v1#m")
    for answer in (changed(**changes), {"choices": other}, {"choices": [{"index": 0, "logprobs": other}]}):
        model.request = lambda *_, answer=answer: answer
        try:
            [one] = model.continuations([("a", "b")], 1)
            assert isinstance(one, BadRow) or isinstance(one.nats, float)
        except UserError as error:
            assert "\n" not in str(error)


def test_which_model(server):
    with Server(lambda *_: (200, {"data": [{"id": "a"}, {"id": "b"}]})) as two, pytest.raises(UserError, match="a, b; give"):
        RemoteModel(two.address)
    with pytest.raises(UserError, match="no answer in"):
        RemoteModel("http://127.0.0.1:9/v1")

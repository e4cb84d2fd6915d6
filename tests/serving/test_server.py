"""The server, asked by OpenAI's own client."""

import asyncio
import contextlib
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("openai", reason="needs the `test` extra")
import openai
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.generation.engine import Sampling, generate
from groundup.generation.request import RequestSampling, Token
from groundup.model.model_folder import load_decoder
from groundup.serving import web
from groundup.serving.answer import Choice, TokenAtOffset, completion_logprobs
from groundup.serving.loaded_models import Capacity, open_all
from groundup.serving.protocol import ChatRequest, CompletionRequest
from groundup.tokenizer.chat import answer_ends, render

QUESTION = [{"role": "system", "content": "the file"}, {"role": "user", "content": "what does it return"}]


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected(served_folders, toy_tokenizer):
    """Greedy answers by the closed batch."""

    loaded = {name: load_decoder(path) for name, path in served_folders.items()}

    def text(name, prompt, max_tokens):
        model = loaded[name]
        chat = name == "chat"
        ids = render(toy_tokenizer, prompt, True)[0] if chat else [toy_tokenizer.end_of_text, *toy_tokenizer.encode(prompt)]
        ends = answer_ends(toy_tokenizer, model.generation.ends) if chat else [toy_tokenizer.end_of_text]
        found = generate(model, [ids], ends, Sampling(max_tokens, temperature=0), 0)[0]
        return toy_tokenizer.decode([token for token in found if token not in ends])

    return text


def test_chat_whole_streamed_and_async(client, address, expected):
    asked = {"model": "chat", "messages": QUESTION, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected("chat", QUESTION, 20)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 20
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason and chunks[-1].usage == whole.usage

    async def concurrently():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as other:
            answers = await asyncio.gather(*(other.chat.completions.create(**asked) for _ in range(5)))
            return {answer.choices[0].message.content for answer in answers}

    assert asyncio.run(concurrently()) == {whole.choices[0].message.content}


def test_completions_with_every_kind_of_prompt(client, expected, toy_tokenizer):
    def texts(prompt, **more):
        found = client.completions.create(model="base", prompt=prompt, temperature=0, max_tokens=8, **more)
        return [choice.text for choice in sorted(found.choices, key=lambda one: one.index)]

    one, two = expected("base", "the path", 8), expected("base", "it returns", 8)
    ids = [[toy_tokenizer.end_of_text, *toy_tokenizer.encode(text)] for text in ("the path", "it returns")]
    assert texts("the path") == [one] and texts(ids[0]) == [one]
    assert texts(["the path", "it returns"]) == texts(ids) == [one, two]
    assert texts(["the path", "it returns"], n=2) == [one, one, two, two]
    assert texts("the path", echo=True) == ["the path" + one]
    asked = {"model": "base", "prompt": ["the path", "it returns"], "temperature": 0, "max_tokens": 8}
    chunks = list(client.completions.create(**asked, stream=True))
    for index, text in enumerate((one, two)):
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == index) == text


def test_64_at_once_are_each_as_alone(address, expected):
    rng = random.Random(0)
    words = ["the", "path", "file", "returns", "it", "of"]
    prompts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(64)]

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            asks = [client.completions.create(model="base", prompt=prompt, temperature=0, max_tokens=12) for prompt in prompts]
            return [answer.choices[0].text for answer in await asyncio.gather(*asks)]

    assert asyncio.run(all_of_them()) == [expected("base", prompt, 12) for prompt in prompts]


def test_a_sample_depends_on_its_seed_alone(client, address):
    asked = {"model": "base", "prompt": "the path", "temperature": 1.0, "max_tokens": 12}
    alone = [client.completions.create(**asked, seed=seed).choices[0].text for seed in range(4)]
    assert len(set(alone)) == 4

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as other:
            some = [other.completions.create(**asked, seed=seed) for seed in (3, 1, 2, 0)]
            return [one.choices[0].text for one in await asyncio.gather(*some)]

    assert asyncio.run(together()) == [alone[seed] for seed in (3, 1, 2, 0)]
    both = client.completions.create(**asked, seed=1, n=2).choices
    assert [one.text for one in both] == [alone[1], alone[2]]  # the n-th has the n-th seed after it


def test_stop_strings_end_the_text_before_them(client, expected):
    text = expected("base", "the path", 20)
    stop = text[6:9]
    cut = text[: text.index(stop)]
    asked = {"model": "base", "prompt": "the path", "temperature": 0, "max_tokens": 20, "stop": ["never this", stop]}
    whole = client.completions.create(**asked)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (cut, "stop")
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == cut


def test_logprobs_of_prompt_and_answer(client, toy_tokenizer):
    found = client.completions.create(model="base", prompt="the path", temperature=0, max_tokens=3, logprobs=2, echo=True)
    logprobs = found.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(value < 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == found.usage.total_tokens == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    last = logprobs.top_logprobs[-1]
    assert last[logprobs.tokens[-1]] == logprobs.token_logprobs[-1] == max(last.values())
    chat = client.chat.completions.create(
        model="chat", messages=QUESTION, temperature=0, max_tokens=3, logprobs=True, top_logprobs=4
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == chat.usage.completion_tokens and all(len(one.top_logprobs) == 4 for one in content)
    assert content[0].logprob == content[0].top_logprobs[0].logprob and bytes(content[0].bytes)
    read = client.completions.create(model="base", prompt="the path", max_tokens=0, echo=True, logprobs=0)
    assert read.choices[0].text == "the path" and read.choices[0].logprobs.top_logprobs is None


LETTERS = st.text(st.sampled_from("ath ep\u00e9\u6f22\U0001f600"), max_size=8)


def test_text_offset_says_where_a_token_stands_streamed_or_not(client, toy_tokenizer):
    """Also where characters are made of several tokens, or tokens of no character."""

    @settings(max_examples=15)
    @example([5], True, 0)
    @example("", True, 0)
    @given(LETTERS | st.lists(st.integers(0, toy_tokenizer.size - 1), min_size=1, max_size=12), st.booleans(), st.integers(0, 99))
    def placed(prompt, echo, seed):
        asked = {"model": "base", "prompt": prompt, "echo": echo, "seed": seed, "max_tokens": 8, "logprobs": 20}
        asked["temperature"] = 2.0
        whole = client.completions.create(**asked).choices[0]
        tokens, offsets = whole.logprobs.tokens, whole.logprobs.text_offset
        assert offsets == sorted(offsets) and offsets[-1] <= len(whole.text)
        special = {*toy_tokenizer.special_tokens}
        for token, offset in zip(tokens, offsets, strict=True):
            assert token.startswith("bytes:") or token in special or whole.text.startswith(token, offset), (tokens, offsets)
        assert all(len(top) in (20, 21) for top in whole.logprobs.top_logprobs if top)  # no two share a name
        pieces = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
        streamed = [piece.logprobs for piece in pieces if piece.logprobs]
        assert [one for piece in streamed for one in piece.text_offset] == offsets
        assert [one for piece in streamed for one in piece.tokens] == tokens
        assert "".join(piece.text for piece in pieces) == whole.text

    placed()


def test_of_tokens_that_look_alike_each_has_its_own_probability():
    class Two:
        special_tokens = {"<|end|>": 2}

        def token_bytes(self, token):
            return b"" if token == 2 else b"A"  # as `A` and its byte in a tokenizer of SentencePiece

    tokens = [TokenAtOffset(Token(0, -0.1, ((0, -0.1), (2, -2.0), (1, -9.0))), 0), TokenAtOffset(Token(1, -9.0, ((0, -0.1),)), 1)]
    assert completion_logprobs(Two(), tokens, 3)["top_logprobs"] == [{"A": -0.1, "<|end|>": -2.0}, {"A": -9.0}]


def test_sampling_beyond_openais(client):
    more = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2}
    found = client.completions.create(
        model="base", prompt="the path", max_tokens=6, seed=1, presence_penalty=0.5, frequency_penalty=0.5, top_p=0.9,
        logit_bias={"290": 100}, extra_body=more,
    )  # fmt: skip
    assert found.usage.completion_tokens == 6
    pushed = client.completions.create(model="base", prompt="a", max_tokens=3, temperature=0, logit_bias={"290": 100}, logprobs=0)
    assert len(set(pushed.choices[0].logprobs.tokens)) == 1


@pytest.mark.parametrize(("change", "param"), [
    ({"tempature": 1}, "tempature"), ({"temperature": -1}, "temperature"), ({"temperature": "hot"}, "temperature"),
    ({"n": 0}, "n"), ({"n": 1000}, "n"), ({"stop": ""}, "stop"), ({"logprobs": 21}, "logprobs"), ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"), ({"prompt": [10**6]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": "the " * 500}, "prompt"), ({"max_tokens": 10**5}, "prompt"), ({"max_tokens": 0}, "max_tokens"),
    ({"best_of": 3}, "best_of"), ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"suffix": "a"}, "suffix"), ({"seed": 1.5}, "seed"),
    ({"top_p": 0}, "top_p"), ({"model": 5}, "model"), ({"logit_bias": {"05": 1, "5": 2}}, "logit_bias"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
])  # fmt: skip
def test_bad_requests_name_the_field(client, address, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", cast_to=object, body={"model": "base", "prompt": "the path"} | change)
    assert caught.value.param == param and len(caught.value.message) < 600
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(("change", "said"), [
    ({"tools": [{"type": "function"}]}, "tools: not supported"), ({"tool_choice": "auto"}, "tool_choice: not supported"),
    ({"tool_choice": {"type": "function"}}, "tool_choice: not supported"), ({"functions": [{}]}, "functions: not supported"),
    ({"parallel_tool_calls": True}, "unknown field 'parallel_tool_calls'"), ({"tempature": 1}, "did you mean temperature"),
    ({"response_format": {"type": "json_object"}}, "response_format = 'json_object'"),
    ({"response_format": {"type": "text", "colour": 1}}, "unknown field 'response_format.colour': not read here"),
    ({"stream": True, "stream_options": {"usage": True}}, "unknown field 'stream_options.usage'"),
    ({"stream_options": [], "stream": True}, "input should be an object"), ({"reasoning_effort": "low"}, "not read here"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "another number than max_tokens"),
])  # fmt: skip
def test_what_a_chat_does_not_honour_is_refused_and_says_which(client, change, said):
    with pytest.raises(openai.BadRequestError, match=re.escape(said)) as caught:
        client.post("/chat/completions", cast_to=object, body={"model": "chat", "messages": QUESTION} | change)
    assert caught.value.param in change and len(caught.value.body["message"]) <= 300


@pytest.mark.parametrize("change", [
    {"tools": [], "tool_choice": "none", "store": False, "response_format": {"type": "text"}}, {"max_completion_tokens": 3},
    {"max_tokens": 3, "max_completion_tokens": 3}, {"metadata": {"a": "b"}, "user": "ada"},
    {"messages": [{"role": "user", "content": "a", "type": "text"}]},
])  # fmt: skip
def test_what_changes_nothing_is_let_pass(client, change):
    asked = {"model": "chat", "messages": QUESTION, "temperature": 0, "max_tokens": 3} | change
    if "max_tokens" not in change and "max_completion_tokens" in change:
        del asked["max_tokens"]
    assert client.post("/chat/completions", cast_to=object, body=asked)["usage"]["completion_tokens"] <= 3
    options = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    assert list(client.chat.completions.create(**asked, **options))[-1].usage


@pytest.mark.parametrize("messages", [
    [], [{"role": "assistant", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], [{"role": "tool", "content": "a"}], "a",
    [{"role": "user", "content": "a", "name": "ada"}],
    [{"role": "user", "content": [{"type": "text", "text": "a", "colour": 1}]}],
])  # fmt: skip
def test_bad_messages(client, messages):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=object, body={"model": "chat", "messages": messages})
    assert caught.value.param == "messages"


def test_an_answer_is_sent_back_as_the_client_gives_it(client):
    asked = {"model": "chat", "temperature": 0, "max_tokens": 3}
    first = client.chat.completions.create(messages=QUESTION, **asked).choices[0].message
    messages = [*QUESTION, first.model_dump(), {"role": "user", "content": [{"type": "text", "text": "the path"}]}]
    assert client.chat.completions.create(messages=messages, **asked).usage.completion_tokens


@pytest.mark.parametrize(("change", "said"), [
    ({"stop": ["a"] * 17}, "at most 16"), ({"prompt": [1, -1]}, "greater than or equal to 0"), ({"stop": [None]}, "valid string"),
])  # fmt: skip
def test_the_error_is_of_what_the_client_meant(client, change, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.post("/completions", cast_to=object, body={"model": "base", "prompt": "the path"} | change)


def test_other_refusals(client, address, models):
    with pytest.raises(openai.NotFoundError, match="served here: chat, base"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="not trained to chat"):
        client.chat.completions.create(model="base", messages=QUESTION)
    tools = [{"type": "function", "function": {"name": "a"}}]
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="chat", messages=QUESTION, tools=tools)
    half = b'{"model": "\\ud800", "prompt": "a"}'  # of a surrogate pair
    for body in (b"", b"[]", b"{", b'{"model": "\xff"}', half, b"[" * 10000, b'{"n": ' + b"9" * 5000 + b"}"):
        answer = httpx.post(f"{address}/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    large = httpx.post(f"{address}/v1/completions", content=b" " * (9 << 20), headers={"content-type": "application/json"})
    assert large.status_code == 413
    assert httpx.get(f"{address}/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_models_tokens_health_metrics_and_page(client, address, toy_tokenizer):
    assert [model.id for model in client.models.list()] == ["chat", "base"] and client.models.retrieve("base").id == "base"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")

    def post(route, body):
        return httpx.post(f"{address}/{route}", json=body).json()

    ids = toy_tokenizer.encode("the path")
    assert post("tokenize", {"prompt": "the path", "add_special_tokens": False})["tokens"] == ids
    assert post("tokenize", {"prompt": "the path"})["tokens"] == [toy_tokenizer.end_of_text, *ids]
    assert post("tokenize", {"model": "chat", "messages": QUESTION})["tokens"] == render(toy_tokenizer, QUESTION, True)[0]
    newer = [{**QUESTION[0], "role": "developer"}, QUESTION[1]]
    assert post("tokenize", {"model": "chat", "messages": newer})["tokens"] == render(toy_tokenizer, QUESTION, True)[0]
    assert post("detokenize", {"tokens": ids}) == {"prompt": "the path"}
    assert "error" in post("detokenize", {"tokens": [10**6]}) and "error" in post("tokenize", {})
    info = httpx.get(f"{address}/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>" and "im_start" in info["chat_template"]
    assert httpx.get(f"{address}/tokenizer_info?model=base").json()["eos_token"] == "<|endoftext|>"
    assert httpx.get(f"{address}/tokenizer_info?model=other").status_code == 404
    assert httpx.get(f"{address}/health").json() == {"status": "ok"} and httpx.head(f"{address}/health").status_code == 200
    metrics = httpx.get(f"{address}/metrics").text
    assert 'groundup_requests_total{model="base"}' in metrics and "# TYPE groundup_requests_waiting gauge" in metrics
    page = httpx.get(f"{address}/")
    assert "default-src 'none'" in page.headers["content-security-policy"] and "http" not in page.text.replace("/v1", "")


def test_other_hosts_and_origins_are_refused(address):
    body = {"model": "base", "prompt": "a", "max_tokens": 1}
    for headers, status in (
        ({}, 200), ({"host": "localhost:80"}, 200), ({"host": "evil.example"}, 403), ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403), ({"origin": address}, 200), ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ):  # fmt: skip
        assert httpx.post(f"{address}/v1/completions", json=body, headers=headers).status_code == status, headers


def test_a_key_where_one_is_set(served_folders, listening):
    with listening(open_all([*map(str, served_folders.values())], Capacity()), key="secret") as address:
        for key, error in (("wrong", openai.AuthenticationError), ("secret", None)):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
            if error:
                with pytest.raises(error):
                    client.models.list()
            else:
                assert len(list(client.models.list())) == 2
        assert httpx.get(f"{address}/metrics").status_code == 401 and httpx.get(f"{address}/health").status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
def test_clients_that_leave_free_their_slots_and_their_places_in_the_queue(address, models, streamed):
    scheduler = models["base"].scheduler
    before = scheduler.counts["cancelled"]
    body = {"model": "base", "prompt": "the path", "max_tokens": 240, "stream": streamed, "logit_bias": {"290": 100}, "n": 100}
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
        connection.sendall(raw(body))
        until(lambda: scheduler.running)
    until(lambda: not scheduler.running and not scheduler.waiting)
    assert scheduler.counts["cancelled"] >= before + 50  # whatever had been answered by then


def until(holds):
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert holds()


def test_too_many_waiting_is_429(served_folders, listening):
    models = open_all([str(served_folders["base"])], Capacity(slots=1, waiting=2))
    with listening(models) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="4 answers are asked for, and 2 may wait"):
            client.completions.create(model="base", prompt=["a", "b", "c", "d"], max_tokens=2)


def test_nothing_is_lost_of_many(address):
    """200 requests, 40 at a time."""

    async def many():
        gate = asyncio.Semaphore(40)
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:

            async def one(number):
                async with gate:
                    asked = {"model": "base", "prompt": "the path", "max_tokens": 1 + number % 5, "seed": number}
                    answer = await client.completions.create(**asked)
                    return answer.usage.completion_tokens

            return await asyncio.gather(*map(one, range(200)))

    counts = asyncio.run(many())
    assert len(counts) == 200 and all(1 <= count <= 1 + number % 5 for number, count in enumerate(counts))


def test_fuzzed_requests_are_answered_or_refused(address):
    """Valid requests with some fields replaced by anything: never 500."""
    rng = random.Random(1)
    anything = [None, True, 0, -1, 3, 1e308, 2**70, "", "a", "\x00\x1b", [], ["a"], [[1]], [None], {}, {"a": []}]
    valid = {
        "completions": {"model": "base", "prompt": "the path", "max_tokens": 2},
        "chat/completions": {"model": "chat", "messages": QUESTION, "max_tokens": 2},
    }
    fields = {"completions": [*CompletionRequest.model_fields], "chat/completions": [*ChatRequest.model_fields]}
    asked = []
    for _ in range(300):
        route = rng.choice([*valid])
        body = valid[route] | {rng.choice(fields[route]): rng.choice(anything) for _ in range(rng.randint(1, 3))}
        asked.append((f"{address}/v1/{route}", json.dumps(body)))
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(8) as pool:
        kind = {"content-type": "application/json"}
        statuses = set(pool.map(lambda one: client.post(one[0], content=one[1], headers=kind).status_code, asked))
    assert statuses <= {200, 400, 404} and {200, 400} <= statuses


def test_models_share_a_process_and_threads_end(served_folders, listening):
    before = threading.active_count()
    with listening(open_all([f"mine={served_folders['base']}"], Capacity())) as address:
        assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "mine"
    assert threading.active_count() <= before + 1


def test_it_stops_whatever_its_clients_do(served_folders, listening):
    """One that is there and silent, one that never ends its request, one that reads nothing, one that waits, one that left."""
    with listening(open_all([str(served_folders["base"])], Capacity(slots=2))) as address, contextlib.ExitStack() as held:
        body = {"model": "base", "prompt": "the path", "max_tokens": 240, "logit_bias": {"290": 100}, "logprobs": 5, "n": 40}
        for sent in (b"", raw(body)[:-9], raw({**body, "stream": True}), raw(body), raw(body)):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(sent)
        connection.close()
        time.sleep(0.2)
        stops = held.pop_all()
    stops.close()  # all but the last are connected still when the server ends


def raw(body):
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def test_the_verb_serves_until_it_is_told_to_stop(served_folders, environment):
    command = [sys.executable, "-m", "groundup", "serve", f"toy={served_folders['base']}", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if "/v1" in line)
    address = re.search(r"http://\S+(?=/v1)", line)[0]
    answer = httpx.post(f"{address}/v1/completions", json={"model": "toy", "prompt": "a", "max_tokens": 2}, timeout=60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert answer.status_code == 200 and process.returncode in (0, 130), err
    if process.returncode == 0:
        assert json.loads(out.splitlines()[-1])["models"]["toy"]["requests"] == 1


def test_what_the_verb_refuses(served_folders, groundup_here, tmp_path):
    base = served_folders["base"]
    for words, said in (
        ([base, "--host", "0.0.0.0"], "key"), ([tmp_path], "empty folder"), ([base, base], "two models"),
        ([base, "--host", "192.0.2.1"], "host 192.0.2.1"),
    ):  # fmt: skip
        done = groundup_here("serve", *words)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr) < 400, words


@pytest.mark.parametrize("whole", [True, False])
def test_a_stop_string_is_found_across_tokens_and_bytes(models, toy_tokenizer, whole):
    """Fed byte by byte: neither half a character nor the beginning of a stop string gets out."""
    of_byte = {toy_tokenizer.token_bytes(token): token for token in reversed(range(len(toy_tokenizer)))}
    ids = [of_byte[bytes([byte])] for byte in "path é\u0301漢 of".encode()]
    pieces = []

    async def fed():
        choice = Choice(
            0, models["base"], [1], RequestSampling(), 99, 0, frozenset(), ["never", "\u0301漢"], None, False, whole, False,
            pieces.append,
        )  # fmt: skip
        for token in ids:
            if choice.request.on_token(Token(token)):
                break
        choice.request.on_end("stop", "")

    asyncio.run(fed())
    assert "".join(piece.text for piece in pieces) == "path é" and all("\ufffd" not in piece.text for piece in pieces)



def test_an_address_that_cannot_be_listened_on_says_which_part_is_wrong():
    with contextlib.closing(web.bind("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another port"):
        web.bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="choose another host"):
        web.bind("a host", 8000)


def test_a_folder_may_have_an_equals_sign_in_its_name(served_folders, tmp_path):
    folder = shutil.copytree(served_folders["chat"], tmp_path / "lr=0.1" / "chat")
    assert {name: one.folder for name, one in open_all([str(folder), f"mine={folder}"], Capacity(slots=1)).items()} == {
        "chat": folder, "mine": folder,
    }  # fmt: skip

"""10,000 requests that are wrong in some way, or right: no answer of 500, and the server answers as before afterwards.

Valid requests to every route, of options in any company, with up to three fields replaced by, or given besides, anything that
JSON can say; bodies cut, nested, without end or of no encoding; heads, methods, paths and queries of all kinds; 16 at a time to
two toy models of 2 layers x 32 and the runs of a toy folder. A status of 500 is a failure, and so is a connection that is lost
where the request was whole.
"""

import argparse
import contextlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from common import conclude, machine
from groundup.model import model_folder as folders
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.serving.loaded_models import Capacity, open_all
from groundup.serving.openai_api import create_app
from groundup.serving.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from groundup.serving.run_folders import RunFolders
from groundup.serving.web import bind
from groundup.serving.web import server as server_of
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

CLAIM = "10,000 fuzzed requests to the server: answers of 500 or none"
COUNT, AT_ONCE = 10_000, 16
STATUSES = {200, 307, 400, 401, 403, 404, 405, 413, 415, 429, 503}
TEXT = ["what does the function return", "it returns the path of the file", "def path(file):\n    return file\n"]
ANYTHING: list[Any] = [
    None, True, False, 0, -1, 1, 3, 128, 1e308, -1e308, 0.5, 2**70, -(2**70), "", "a", "\x00\x1b\u202e", "\ud800", "the " * 300,
    [], ["a"], [[1]], [[1], "a"], [None], [[[]]], [10**9], {}, {"a": []}, {"290": 100}, {"-1": 1}, {"x": "y"}, {"type": "text"},
    [{"role": "user", "content": "a"}], [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "tool"}],
]  # fmt: skip
LARGE = [b" " * (9 << 20), b'{"model": "base", "prompt": [' + b"null, " * (1 << 20) + b"null]}"]
QUESTION = [{"role": "user", "content": "what does it return"}]
VALID: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/completions": (CompletionRequest, {"model": "base", "prompt": "the path", "max_tokens": 2}),
    "/v1/chat/completions": (ChatRequest, {"model": "chat", "messages": QUESTION, "max_tokens": 2}),
    "/tokenize": (TokenizeRequest, {"prompt": "the path"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1, 2]}),
}
SENSIBLE: dict[str, list[Any]] = {
    "max_tokens": [0, 1, 5], "n": [1, 3], "stream": [True, False], "temperature": [0, 0.5, 2.0], "top_p": [0.5], "top_k": [1, 5],
    "min_p": [0.1], "repetition_penalty": [0.5, 2.0], "presence_penalty": [1.0], "logit_bias": [{"5": 100}, {"5": -100, "6": 1}],
    "seed": [0, -1], "stop": ["a", ["e", "the"], []],
}  # fmt: skip
SENSIBLE_OF: dict[str, dict[str, list[Any]]] = {
    "/v1/completions": SENSIBLE | {
        "prompt": ["", "a", [5], [[5], [6, 7]], ["a", ""], [7] * 200, "the " * 40], "echo": [True, False], "logprobs": [0, 1, 20],
    },
    "/v1/chat/completions": SENSIBLE | {"logprobs": [True, False], "max_completion_tokens": [1, 5]},
}  # fmt: skip
PATHS = [
    "/", "/health", "/metrics", "/v1/models", "/v1/models/base", "/v1/models/..%2f..%2fetc", "/tokenizer_info", "/runs",
    "/runs/list", "/runs/run", "/runs/curves", "/runs/samples", "/leaderboard", "/nothing", "//", "/%00",
    "/v1/completions", "/..;/",
]  # fmt: skip
QUERIES = [
    "", "?run=one", "?run=one&step=base", "?run=../..", "?run=%00", "?run=one&step=%ff", "?seen=1&run=one&step=base",
    "?" + "a" * 5000,
]  # fmt: skip
HEADERS: list[dict[str, str]] = [
    {}, {"content-type": "text/plain"}, {"host": "evil.example"}, {"host": ""}, {"host": "[::1"}, {"origin": "null"},
    {"authorization": "Bearer x"}, {"sec-fetch-site": "cross-site"}, {"content-type": "application/json; charset=latin-1"},
    {"accept-encoding": "x"}, {"content-encoding": "gzip"}, {"range": "bytes=9-1"}, {"x-a": "b" * 3000},
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    options, _ = parser.parse_known_args()
    print(machine())
    with tempfile.TemporaryDirectory() as work, serving(Path(work)) as address:
        before = greedy(address)
        statuses, failures = fuzz(address, options.count)
        same = greedy(address) == before
    print(f"statuses {dict(sorted(statuses.items()))}; the same answer as before: {same}")
    for failure in failures[:5]:
        print(failure)
    conclude(CLAIM, len(failures), "answers", 0, not failures and same)


def fuzz(address: str, count: int) -> tuple[Counter[int], list[str]]:
    """Statuses, and the requests that were answered otherwise or not at all."""
    statuses, failures, rng = Counter[int](), [], random.Random(0)
    requests = [any_request(rng) for _ in range(count)]
    with httpx.Client(base_url=address, timeout=120, limits=httpx.Limits(max_connections=AT_ONCE)) as client:

        def send(request: dict[str, Any]) -> None:
            try:
                status = client.request(**request).status_code
            except httpx.TransportError as error:
                # A body that is refused by its length may be cut off while it is sent.
                status = 0 if len(request.get("content", b"")) < 1 << 20 else 413
                if not status:
                    failures.append(f"{error!r}: {str(request)[:300]}")
            statuses[status] += 1
            if status and status not in STATUSES:
                failures.append(f"{status}: {str(request)[:300]}")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, requests))
    return statuses, failures


def any_request(rng: random.Random) -> dict[str, Any]:
    json_kind = {"content-type": "application/json"}
    if rng.random() < 0.2:
        headers = {**json_kind, **rng.choice(HEADERS)}
        return {"method": rng.choice(METHODS), "url": rng.choice(PATHS) + rng.choice(QUERIES), "headers": headers}
    path = rng.choice([*VALID])
    kind, valid = VALID[path]
    options = SENSIBLE_OF.get(path, {})
    body = valid | {name: rng.choice(options[name]) for name in rng.sample([*options], min(len(options), rng.randint(0, 6)))}
    body |= {field(rng, kind): rng.choice(ANYTHING) for _ in range(rng.choice([0, 0, 1, 2, 3]))}
    data = json.dumps(body).encode()
    if rng.random() < 0.15:
        data = rng.choice([
            data[: rng.randrange(len(data) + 1)], data + b"}", data.replace(b'"', b"\xff", 1), b"[" * 50_000, b"\x00" * 9, b"",
            b'{"model": "base", "n": ' + b"9" * 5000 + b"}", b"NaN", data.replace(b"2", b"NaN"), *LARGE,
        ])  # fmt: skip
    headers = json_kind | (rng.choice(HEADERS) if rng.random() < 0.1 else {})
    return {"method": "POST", "url": path, "headers": headers, "content": data}


def field(rng: random.Random, kind: Any) -> str:
    return rng.choice([*kind.model_fields, "colour"])


def greedy(address: str) -> str:
    body = {"model": "base", "prompt": "the path", "max_tokens": 20, "temperature": 0}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]


@contextlib.contextmanager
def serving(work: Path) -> Iterator[str]:
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(TEXT * 9), 300))
    for number, name in enumerate(("chat", "base")):
        torch.manual_seed(number)
        model = Decoder(DecoderConfig(tokenizer.size, 32, 2, 4, 2, 8, 48, 256))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        folders.save(work / name, model, tokenizer, chat=name == "chat")
    (work / "runs" / "one" / "base").mkdir(parents=True)
    (work / "runs" / "one" / "base" / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    models = open_all([str(work / "chat"), str(work / "base")], Capacity(slots=8, waiting=64))
    app = create_app(models, runs=RunFolders(work / "runs"))
    listening = bind("127.0.0.1", 0)
    server = server_of(app, grace=2)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


if __name__ == "__main__":
    main()

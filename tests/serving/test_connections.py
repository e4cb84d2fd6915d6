"""Clients that send or read too little, and whom the server is for."""

import asyncio
import contextlib
import socket
import threading

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from groundup.core.errors import UserError
from groundup.serving import connections, guard
from groundup.serving.loaded_models import Capacity, open_all
from groundup.serving.serve import serve

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
BODY = b'{"model": "base", "prompt": "the path", "max_tokens": 8, "logit_bias": {"290": 100}}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
STARTED = {
    "nothing": b"", "half a head": HEAD[:40], "a head without end": HEAD, "no body": HEAD + b"content-length: 99\r\n\r\n",
    "half a body": WHOLE[:-9], "no last chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    "more than is read": HEAD + b"content-length: 99999999\r\n\r\n" + b" " * (9 << 20),
}  # fmt: skip


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(connections, "SECONDS", 0.2)


def connected(address):
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60)


def test_a_request_that_does_not_come_to_its_end_is_not_waited_for(address, soon):
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connected(address)) for _ in STARTED]
        for client, sent in zip(clients, STARTED.values(), strict=True):
            client.sendall(sent)
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                while client.recv(65536):  # until the server ends it, or this test fails a minute later
                    pass


def test_an_answer_takes_as_long_as_it_takes(served_folders, listening, soon):
    models = open_all([str(served_folders["base"])], Capacity(slots=1))
    scheduler = models["base"].scheduler
    step = scheduler.step

    def slow():
        threading.Event().wait(0.1)
        step()

    scheduler.step = slow
    with listening(models) as address, connected(address) as client:
        client.sendall(WHOLE)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


class Pipe:
    """A transport of which the client has `left` bytes to read whenever it is looked at."""

    def __init__(self, left):
        self.left, self.looks, self.aborted = left, 0, asyncio.Event()

    def get_write_buffer_size(self):
        self.looks += 1
        return self.left[min(self.looks, len(self.left)) - 1]

    def set_write_buffer_limits(self, high):
        assert high == 0

    def get_extra_info(self, name):
        return None

    def abort(self):
        self.aborted.set()


@pytest.mark.parametrize(("left", "looks"), [([9], 2), ([9, 8, 7, 7], 4), ([9, 3, 5], 3)])
def test_an_answer_is_held_for_who_reads_it_however_slowly_and_for_nobody_else(monkeypatch, left, looks):
    monkeypatch.setattr(connections, "SECONDS", 0.001)

    async def watched():
        loop, pipe = asyncio.get_running_loop(), Pipe(left)
        connection = connections.Connection(uvicorn.Config(None), ServerState(), {}, loop)
        connection.connection_made(pipe)
        connection.request_timer.cancel()
        connection.pause_writing()
        await pipe.aborted.wait()
        again = Pipe(left)
        connection.transport, connection.request_timer = again, None
        connection.pause_writing()
        connection.resume_writing()  # all is read
        await asyncio.sleep(0.02)
        return pipe.looks, again.aborted.is_set()

    assert asyncio.run(watched()) == (looks, False)


@pytest.mark.parametrize(("method", "path", "mode", "dest", "status"), [
    ("GET", "/", "navigate", "document", 200), ("GET", "/health", "navigate", "document", 200),
    ("GET", "/", "navigate", "iframe", 403), ("GET", "/", "no-cors", "script", 403), ("GET", "/", "cors", "empty", 403),
    ("GET", "/v1/models", "navigate", "document", 403), ("POST", "/v1/completions", "navigate", "document", 403),
    ("GET", "/", "navigate", None, 403), ("GET", "/", None, None, 403),
])  # fmt: skip
def test_of_other_sites_a_link_leads_to_a_page_and_nothing_else_does(address, method, path, mode, dest, status):
    said = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    headers = {name: value for name, value in said.items() if value}
    assert httpx.request(method, f"{address}{path}", headers=headers).status_code == status
    assert httpx.request(method, f"{address}{path}", headers=headers | {"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("key", [None, "", " ", "\n"])
def test_a_key_of_spaces_is_none(served_folders, key):
    with pytest.raises(UserError, match="key"):
        serve([str(served_folders["base"])], "0.0.0.0", 0, key, [], Capacity())


@pytest.mark.parametrize("key", ["secret", "schl\u00fcssel"])
def test_a_key_is_its_bytes_and_a_host_name_has_no_port(served_folders, listening, key):
    models = open_all([str(served_folders["base"])], Capacity(slots=1))
    with listening(models, key=key, hosts=("label.example:8443", "::1")) as address:
        for host, given, status in (
            ("label.example", key, 200), ("label.example:8443", key, 200), ("LABEL.example:1", key, 200), ("[::1]:80", key, 200),
            ("localhost", key, 403), ("label.example", f"{key}x", 401), ("label.example", key[:-1], 401), ("[::1]", "", 401),
        ):  # fmt: skip
            headers = {"host": host, "authorization": b"Bearer " + given.encode() if given else b"Bearer"}
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == status, (host, given)


NAMES = st.sampled_from(["127.0.0.1", "localhost", "LocalHost", "[::1]"])
OTHERS = st.sampled_from(["evil.example", "127.0.0.1.evil.example", "", "[::2]", "::1", "127.0.0.1 ", "2130706433", "localhost."])
WRONG_ENDS = st.sampled_from(["@evil.example", ":80@evil.example", ",evil.example", ":x", "]", "/", "#", "?a", ":80:80", "\\"])


@given(NAMES, st.sampled_from(["", ":", ":80", ":8000"]), OTHERS, WRONG_ENDS)
def test_a_host_is_a_name_and_a_port(name, port, other, end):
    assert guard._name(name + port) in guard.LOOPBACK
    assert guard._name(other + port) not in guard.LOOPBACK and guard._name(name + end) not in guard.LOOPBACK

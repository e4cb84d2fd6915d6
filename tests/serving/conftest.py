"""A server with toy models on loopback, in a thread of the tests."""

import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi", reason="needs the `serve` extra")
uvicorn = pytest.importorskip("uvicorn", reason="needs the `serve` extra")

from groundup.model import folder as folders
from groundup.serving.api import create_app
from groundup.serving.models import Capacity, open_all
from groundup.serving.serve import _bind


@pytest.fixture(scope="session")
def listening():
    return _listening


@contextmanager
def _listening(models, **settings):
    """The address of a server of these models."""
    sock = _bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(models, **settings), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def served_folders(tmp_path_factory, toy_decoder, toy_tokenizer):
    """A chat model and a base model."""
    found = {}
    for number, name in enumerate(("chat", "base")):
        found[name] = tmp_path_factory.mktemp("served") / name
        model = toy_decoder(seed=number, vocab_size=toy_tokenizer.size, max_position_embeddings=256)
        folders.save(found[name], model, toy_tokenizer, chat=name == "chat")
    return found


@pytest.fixture(scope="session")
def models(served_folders):
    return open_all([str(path) for path in served_folders.values()], Capacity(slots=8, waiting=200))


@pytest.fixture(scope="session")
def address(models):
    with _listening(models) as address:
        yield address

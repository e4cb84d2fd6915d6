"""A project of eight pairs, and a server of it."""

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi", reason="needs the `label` extra")
pytest.importorskip("sqlalchemy", reason="needs the `label` extra")

from groundup.labelling.label_server import create_app
from groundup.labelling.store import Pair, open_store, pair_id_of
from groundup.serving.web import server as server_of


def pair(number, **more):
    prompt = [{"role": "user", "content": f"question {number}"}]
    a, b = f"answer a {number}", f"answer b {number} longer"
    return Pair(pair_id_of(prompt, a, b), prompt, a, b, **more)


@pytest.fixture
def project(tmp_path):
    """Make a project of some pairs; settings by name."""

    def made(count=8, gold=0, name="labels.db", **changes):
        store = open_store(str(tmp_path / name), make=True)
        with store.transaction() as connection:
            store.change_settings(connection, changes)
            for number in range(count):
                store.add(connection, pair(number))
            for number in range(gold):
                store.add(connection, pair(1000 + number, gold="a"))
        return store

    return made


@pytest.fixture
def served():
    """Serve a project in a thread; gives its address."""

    @contextmanager
    def serving(store):
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        server = server_of(create_app(store), grace=2)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)

    return serving


# A server in a process of its own, which can be killed; it says where it listens.
ALONE = """
import socket, sys
from groundup.labelling.label_server import create_app
from groundup.labelling.store import open_store
from groundup.serving.web import server
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("127.0.0.1", int(sys.argv[2])))
listening.listen(64)
print(listening.getsockname()[1], flush=True)
server(create_app(open_store(sys.argv[1]))).run(sockets=[listening])
"""


@pytest.fixture
def server_process(environment):
    """Start a server of a project's file; gives the process and its address."""
    started = []

    def start(address, port=0):
        command = [sys.executable, "-c", ALONE, address, str(port)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()

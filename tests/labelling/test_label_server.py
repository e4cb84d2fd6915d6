"""The labelling server: who may, what it refuses, two processes on one file, and a process that is killed."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.labelling.label_server import invite, serve
from groundup.labelling.results import log_of, report
from groundup.labelling.store import Pair, open_store


def post(address, path, body, **headers):
    """Status and content."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def label_all(address, name, tries=3):
    """Label whatever there is, each judgement sent several times; the keys that were stored."""
    stored = set()
    while True:
        pairs = post(address, "next", {"annotator": name, "count": 3})[1]["pairs"]
        if not pairs:
            return stored
        for pair in pairs:
            key = f"{name}-key-{pair['pair_id']}"
            body = {"annotator": name, "judgements": [{"key": key, "pair_id": pair["pair_id"], "choice": "left", "seconds": 1.5}]}
            for _ in range(tries):
                status, answer = post(address, "judgements", body)
                assert (status, answer["stored"]) == (200, [key])
            stored.add(key)


def test_two_server_processes_write_one_file(project, server_process):
    store = project(12, overlap=2)
    addresses = [server_process(store.address)[1] for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(label_all, addresses[number % 2], name) for number, name in enumerate(("ada", "bob", "cy", "dee"))]
        keys = [one.result() for one in work]
    log = log_of(store)
    # Each pair twice, by two people; nothing twice by one, whoever asked for it at the same moment.
    assert len(log) == 24 == sum(map(len, keys)) and len({(event["pair_id"], event["annotator"]) for event in log}) == 24
    assert all(sum(event["pair_id"] == one for event in log) == 2 for one in {event["pair_id"] for event in log})


def test_a_database_that_is_busy_is_no_fault_of_the_clients(project, served, monkeypatch):
    monkeypatch.setattr("groundup.labelling.store.BUSY_SECONDS", 0.05)
    store = project(1)
    with served(store) as address:
        pair = post(address, "next", {"annotator": "ada"})[1]["pairs"][0]
        body = {"annotator": "ada", "judgements": [{"key": "key-0001", "pair_id": pair["pair_id"], "choice": "left"}]}
        with contextlib.closing(sqlite3.connect(store.address)) as other:
            other.execute("BEGIN IMMEDIATE")
            for path in ("next", "judgements"):
                request = urllib.request.Request(
                    f"{address}/{path}", json.dumps(body if path == "judgements" else {"annotator": "ada"}).encode(),
                    {"content-type": "application/json"},
                )  # fmt: skip
                with pytest.raises(urllib.error.HTTPError) as caught:
                    urllib.request.urlopen(request, timeout=60)
                with caught.value as error:
                    assert error.code == 503 and error.headers["retry-after"] == "1"
                    assert "nothing was stored" in json.load(error)["error"]["message"]
        assert post(address, "judgements", body)[1]["stored"] == ["key-0001"]
    assert len(log_of(store)) == 1


def test_a_killed_server_has_lost_nothing_that_it_answered(project, server_process):
    store = project(6)
    process, address = server_process(store.address)
    pairs = post(address, "next", {"annotator": "ada", "count": 6})[1]["pairs"]
    sent = [{"key": f"key-{n:06d}", "pair_id": one["pair_id"], "choice": "right"} for n, one in enumerate(pairs)]
    for one in sent[:4]:
        assert post(address, "judgements", {"annotator": "ada", "judgements": [one]})[1]["stored"] == [one["key"]]
    process.kill()
    process.wait()
    _, again = server_process(store.address)
    held = post(again, "next", {"annotator": "ada", "count": 6})[1]["pairs"]
    assert {one["pair_id"]: one["left"] for one in held} == {one["pair_id"]: one["left"] for one in pairs[4:]}
    answer = post(again, "judgements", {"annotator": "ada", "judgements": sent})[1]  # all again, as the page would
    assert answer["stored"] == [one["key"] for one in sent] and len(log_of(store)) == 6


def test_what_is_wrong_is_refused_by_name_and_the_rest_is_stored(project, served):
    with served(project(2)) as address:
        pairs = post(address, "next", {"annotator": "ada", "count": 2})[1]["pairs"]
        good = {"key": "key-0001", "pair_id": pairs[0]["pair_id"], "choice": "tie"}
        bad = [{**good, "key": "x"}, {**good, "choice": "a"}, {**good, "key": "key-0002", "colour": 1}, {"key": 7}, {}]
        bad += [{**good, "key": "key-0003", "pair_id": "none"}, {**good, "key": "key-0004", "choice": "undo"}]
        bad += [{**good, "key": "key-0005", "seconds": -1}, {**good, "key": "key-0006", "reason": "\0"}]
        status, answer = post(address, "judgements", {"annotator": "ada", "judgements": [*bad, good]})
        assert status == 200 and answer["stored"] == ["key-0001"]
        assert [one["number"] for one in answer["refused"]] == list(range(len(bad)))
        assert all(one["why"] for one in answer["refused"])
        for path, body, status in (
            ("next", {}, 400), ("next", {"annotator": "\n"}, 400), ("next", {"annotator": "a", "count": 0}, 400),
            ("next", b"{", 400), ("judgements", {"annotator": "ada", "judgements": []}, 400), ("none", {}, 404),
            ("judgements", b"[" * 100_000, 400), ("judgements", b" " * (8 << 20) + b"{}", 413),
            ("next", {"annotator": "\ud800"}, 400),
        ):  # fmt: skip
            assert post(address, path, body)[0] == status, (path, body[:20] if isinstance(body, bytes) else body)
        assert post(address, "next", {"annotator": "a"}, host="evil.example")[0] == 403
        assert post(address, "next", {"annotator": "a"}, origin="http://evil.example")[0] == 403


def test_tokens_say_who_it_is(project, served):
    store = project(2, overlap=2)
    tokens = invite(store, ["ada", "bob"])
    with served(store) as address:
        assert post(address, "next", {"annotator": "ada"})[0] == 401
        assert post(address, "next", {}, authorization="Bearer wrong")[0] == 401
        for name, token in tokens.items():
            assert post(address, "next", {"annotator": "eve"}, authorization=f"Bearer {token}")[1]["annotator"] == name
        new = invite(store, ["ada"])["ada"]
        assert post(address, "next", {}, authorization=f"Bearer {tokens['ada']}")[0] == 401
        assert post(address, "next", {}, authorization=f"Bearer {new}")[0] == 200
    assert tokens["bob"].encode() not in b"".join(path.read_bytes() for path in sorted(_files(store)))


def _files(store):
    return Path(store.address).parent.glob(Path(store.address).name + "*")


@pytest.mark.parametrize("other", ["Zo\u0065\u0308 K.", " Zo\u00eb  K. ", "Zo\u00eb\u00a0K."])
def test_one_person_has_one_name_on_every_keyboard(project, served, other):
    store = project(1, overlap=2)
    with served(store) as address:
        pairs = [post(address, "next", {"annotator": name})[1]["pairs"] for name in ("Zo\u00eb K.", other)]
    assert pairs[0] == pairs[1]  # what the same person holds, and not a second opinion
    assert [*invite(store, [other])] == ["Zo\u00eb K."]


def test_an_address_that_others_reach_needs_tokens(project):
    with pytest.raises(UserError, match="tokens"):
        serve(project(1), "0.0.0.0", 0, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8,
)  # fmt: skip
FIELDS = ("annotator", "count", "judgements", "key", "pair_id", "choice", "strength", "seconds", "reason", "undoes")
JUDGED = st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["left", "undo", "key-00001"]), max_size=10)
OPTIONAL = {"annotator": st.just("ada") | JSON, "count": JSON, "judgements": st.lists(JUDGED) | JSON}
BODY = st.fixed_dictionaries({}, optional=OPTIONAL)


def test_whatever_is_sent_no_request_fails_inside(project, served):
    store = project(2)
    with served(store) as address:

        @given(st.sampled_from(["next", "judgements"]), BODY | JSON)
        @settings(max_examples=150)
        def sent(path, body):
            assert post(address, path, body)[0] in (200, 400)

        sent()
    assert log_of(store) == []


@pytest.fixture
def postgres(tmp_path):
    """Address of a Postgres that is started for this test; root starts it as the user `postgres`, since it refuses root."""
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'psycopg[binary]'")
    found = [path for path in (shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))) if path]
    if not found:
        pytest.skip("no Postgres server is installed: apt-get install postgresql")
    folder, as_user = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")), []
    if os.getuid() == 0:
        if subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("Postgres does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    programs, data = Path(found[0]).resolve().parent, folder / "data"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*as_user, programs / "initdb", "-D", data, "-A", "trust", "-U", "ada", "--no-sync"], **quiet)
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    control = [*as_user, programs / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-o", options, "start"], **quiet)
    yield f"postgresql+psycopg://ada@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder)


def test_postgres(served, postgres):
    store = open_store(postgres, make=True)
    with store.transaction() as connection:
        store.change_settings(connection, {"overlap": 2})
        for n in range(6):
            store.add(connection, Pair(f"p{n}", [{"role": "user", "content": f"q{n}"}], "x", "y"))
    with served(store) as first, served(open_store(postgres)) as second, ThreadPoolExecutor(4) as pool:
        names = ("ada", "bob", "cy", "dee")
        work = [pool.submit(label_all, (first, second)[n % 2], name) for n, name in enumerate(names)]
        assert sum(len(one.result()) for one in work) == 12 == len(log_of(store))
        # What is no text in Postgres is refused by itself, and not what comes with it.
        one = log_of(store)[0]
        again = {"key": f"{one['annotator']}-key-{one['pair_id']}", "pair_id": one["pair_id"], "choice": "left"}
        body = {"annotator": one["annotator"], "judgements": [{**again, "pair_id": "\0"}, again]}
        status, answer = post(first, "judgements", body)
        assert (status, answer["stored"], [bad["number"] for bad in answer["refused"]]) == (200, [again["key"]], [0])
    assert report(store)["raw_agreement"] is not None
    store.engine.dispose()

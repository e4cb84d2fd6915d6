"""What the pages of runs and of a leaderboard are given: of files at work, of damaged and of hostile ones."""

import contextlib
import json
import math

import pytest

pytest.importorskip("fastapi", reason="needs the `serve` extra")
pytest.importorskip("httpx", reason="needs the `test` extra")

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from groundup.core.errors import UserError
from groundup.core.seals import MANIFEST, write_sealed
from groundup.serving.openai_api import create_app
from groundup.serving.protocol import RequestError
from groundup.serving.run_folders import MOST_CURVES, POINTS, Curves, RunFolders
from groundup.serving.serve import serve
from groundup.serving.watching import Board

MARKUP = "<img src=x onerror=\"document.title = 'taken'\">"
ROW = {
    "date": "2026-11-29T13:45:56Z", "model": "base", "model_digest": "c7", "task": "piqa", "task_digest": "28", "few_shot": 0,
    "data": {"piqa.jsonl": "af"}, "examples_digest": "22", "examples": 24, "kind": "choices", "convention": "answer",
    "figure": 0.5, "low": 0.4, "high": 0.6, "chance": 0.5, "ece": 0.1, "versions": {"groundup": "0.1.0"},
}  # fmt: skip


def finish(folder, **results):
    folder.mkdir(parents=True, exist_ok=True)
    rest = {"key": {}, "outputs": {}, "digest": "d", "versions": {}, "machine": {}, "seconds": 3.5}
    write_sealed(folder / MANIFEST, {"stage": folder.name, **rest, "results": results})


def write_rows(path, rows, mode="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    """A finished step, and a training at work, of the run `one`; a file beside the runs that nobody may see."""
    runs = tmp_path / "runs"
    finish(runs / "one" / "corpus", documents=7, note=MARKUP)
    write_rows(runs / "one" / "base.partial" / "training" / "metrics.jsonl", [{"step": n, "loss": 5.0 - n} for n in range(3)])
    (runs / "one" / "log.txt").write_text("INFO [1/13] corpus\nINFO [6/13] base\n")
    write_rows(tmp_path / "secret" / "training" / "metrics.jsonl", [{"step": 0, "loss": 42.0}])
    return runs


@pytest.fixture
def client(folder):
    return TestClient(create_app({}, runs=RunFolders(folder)), base_url="http://127.0.0.1")


def get(client, path, **query):
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_steps_position_and_curves_of_a_run_at_work(client, folder):
    assert [one["run"] for one in get(client, "/runs/list")["runs"]] == ["one"]
    found = get(client, "/runs/run", run="one")
    assert [(step["name"], step["state"], step["trains"]) for step in found["steps"]] == [
        ("corpus", "done", False), ("base", "at work", True),
    ]  # fmt: skip
    assert found["steps"][0]["results"] == {"documents": "7", "note": MARKUP} and found["steps"][0]["seconds"] == 3.5
    assert found["position"] == {"step": 6, "of": 13} and found["log"][-1] == "INFO [6/13] base"
    told = get(client, "/runs/curves", run="one", step="base")
    assert told["curves"] == {"loss": [[0, 5.0], [1, 4.0], [2, 3.0]]}
    again = get(client, "/runs/curves", run="one", step="base", seen=told["version"])
    assert "curves" not in again and again["version"] == told["version"]
    with (folder / "one" / "base.partial" / "training" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.5}\n{"step": 4, "lo')
    more = get(client, "/runs/curves", run="one", step="base", seen=told["version"])
    assert more["curves"]["loss"][-1] == [3, 1.5] and more["bad"] == 0


def test_a_training_that_is_made_again_begins_anew_and_repeated_steps_count_once(tmp_path):
    path = tmp_path / "training" / "metrics.jsonl"
    write_rows(path, [{"step": n, "loss": 1.0} for n in (0, 1, 2, 1, 2, 3)])
    curves = Curves(path)
    curves.read_new()
    assert [step for step, _ in curves.points()["loss"]] == [0, 1, 2, 3]
    write_rows(path, [{"step": 0, "loss": 2.0}], mode="w")
    curves.read_new()
    assert curves.points() == {"loss": [[0, 2.0]]}


def test_a_long_training_is_read_once_and_thinned(tmp_path):
    path = tmp_path / "training" / "metrics.jsonl"
    write_rows(path, [{"step": n, "loss": float(n)} for n in range(10 * POINTS)])
    curves = Curves(path)
    curves.read_new()
    points = curves.points()["loss"]
    assert len(points) == POINTS and points[0] == [9, 4.5] and points[-1][0] == 10 * POINTS - 1
    before = curves.offset
    write_rows(path, [{"step": 10 * POINTS, "loss": 0.0}])
    curves.read_new()
    assert before < curves.offset == path.stat().st_size


@settings(max_examples=40)
@given(values=st.lists(st.floats(), min_size=1, max_size=3 * POINTS))
def test_points_are_finite_or_none_and_between_the_least_and_the_most(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("curve") / "training" / "metrics.jsonl"
    write_rows(path, [{"step": n, "loss": value if math.isfinite(value) else str(value)} for n, value in enumerate(values)])
    curves = Curves(path)
    curves.read_new()
    points = curves.points()["loss"]
    assert len(points) == min(len(values), POINTS) and points[-1][0] == len(values) - 1
    finite = [value for value in values if math.isfinite(value)]
    for _, value in points:
        assert value is None or min(finite) - 1e-9 * abs(min(finite)) <= value <= max(finite) + 1e-9 * abs(max(finite))


NAMES = st.sampled_from(
    ["../secret", "..", ".", "", "/etc", "one/base.partial", "one/../../secret", "..\\secret", "%2e%2e/secret", "link", "\0"]
) | st.text(max_size=12)  # fmt: skip


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """Runs with links that lead to a folder beside them."""
    base = tmp_path_factory.mktemp("names")
    write_rows(base / "runs" / "one" / "base" / "training" / "metrics.jsonl", [{"step": 0, "loss": 1.0}])
    write_rows(base / "secret" / "training" / "metrics.jsonl", [{"step": 0, "hidden": 1.0}])
    (base / "runs" / "link").symlink_to(base / "secret")
    (base / "runs" / "one" / "link").symlink_to(base / "secret")
    (base / "runs" / "one" / "base" / "training" / "samples.jsonl").symlink_to(base / "secret" / "training" / "metrics.jsonl")
    return RunFolders(base / "runs")


@settings(max_examples=50)
@given(run=NAMES, step=NAMES | st.just("base"))
def test_no_name_leads_out_of_the_folder(linked, run, step):
    for look in (lambda run: linked.curves(run, step, ""), lambda run: linked.samples(run, step), linked.status):
        with pytest.raises(RequestError):
            look(run)
        with contextlib.suppress(RequestError):
            found = json.dumps(look("one"))
            assert (step == "base" or look == linked.status) and "hidden" not in found and '"link"' not in found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
)  # fmt: skip
CONTENT = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40) | st.just(b"[" * 100_000)
KEYS = ("stage", "key", "outputs", "digest", "versions", "machine", "seconds", "results")
MANIFESTS = st.fixed_dictionaries(dict.fromkeys(KEYS, JSON))


@settings(max_examples=20)
@given(lines=st.lists(CONTENT, max_size=4), manifest=MANIFESTS, name=st.text(max_size=5))
def test_whatever_a_run_holds_is_answered(tmp_path_factory, lines, manifest, name):
    base = tmp_path_factory.mktemp("hostile", numbered=True)
    for step in ("a", "b"):
        (base / "one" / step / "training").mkdir(parents=True)
        (base / "one" / step / "training" / "metrics.jsonl").write_bytes(b"\n".join([*lines, b""]))
    (base / "one" / "a" / "training" / "samples.jsonl").write_bytes(b"\n".join([*lines, b""]))
    (base / "one" / "log.txt").write_bytes(b"\n".join(lines))
    write_sealed(base / "one" / "b" / MANIFEST, manifest)
    runs = RunFolders(base)
    JSONResponse([runs.list(), runs.status("one")])
    for step in ("a", "b", name):
        for found in (lambda step=step: runs.curves("one", step, ""), lambda step=step: runs.samples("one", step)):
            with contextlib.suppress(RequestError, UserError):
                JSONResponse(found())  # which refuses what is no JSON
    columns = {f"m{n}": 1.0 for n in range(2 * MOST_CURVES)}
    write_rows(base / "one" / "b" / "training" / "metrics.jsonl", [{"step": 2**40, **columns}])
    assert len(runs.curves("one", "b", "")["curves"]) <= MOST_CURVES


def test_samples_of_a_step_and_of_a_policy_at_work(client, folder):
    write_rows(folder / "one" / "sft" / "training" / "samples.jsonl", [{"question": MARKUP, "answer": "\x1b" + "a" * 900}] * 30)
    finish(folder / "one" / "sft")
    write_rows(folder / "one" / "ppo.partial" / "training" / "metrics.jsonl", [{"step": 0, "reward": 1.0}])
    write_rows(folder / "one" / "ppo.partial" / "training" / "rollout_samples.jsonl", [{"answer": str(n)} for n in range(30)])
    finish(folder / "one" / "evaluation", samples=[{"prompt": "p", "text": "t"}])
    found = get(client, "/runs/samples", run="one", step="sft")["samples"]
    assert len(found) == 10 and found[0]["question"] == MARKUP and found[0]["answer"].startswith("\\x1baaa")
    assert len(found[0]["answer"]) <= 400
    found = get(client, "/runs/samples", run="one", step="ppo")["samples"]
    assert [one["answer"] for one in found] == [str(n) for n in range(20, 30)]
    assert get(client, "/runs/samples", run="one", step="evaluation")["samples"] == [{"prompt": "p", "text": "t"}]


def test_a_run_or_a_step_alone_and_damage(tmp_path, folder):
    assert [one["run"] for one in RunFolders(folder / "one").list()["runs"]] == ["one"]
    finish(tmp_path / "reward", loss=0.5)
    alone = RunFolders(tmp_path / "reward")
    assert alone.status("reward")["steps"][0]["results"] == {"loss": "0.5"}
    (tmp_path / "reward" / MANIFEST).write_text("{}")
    assert alone.status("reward")["steps"][0]["state"] == "damaged"
    with pytest.raises(UserError, match="no folder of runs"):
        RunFolders(tmp_path / "none")


def test_a_leaderboard_is_read_again_when_it_has_changed(tmp_path):
    path = tmp_path / "leaderboard.jsonl"
    with pytest.raises(UserError, match="no such file"):
        Board(path)
    write_rows(path, [{**ROW, "model": "\x1bbase"}, {**ROW, "task_digest": "29", "few_shot": 5}])
    client = TestClient(create_app({}, board=Board(path)), base_url="http://127.0.0.1")
    found = get(client, "/leaderboard/standings")
    assert found["rows"] == 2 and found["standings"][0]["tables"][1]["why"] == ["0 and 5 few-shot examples"]
    assert found["standings"][0]["tables"][0]["rows"][0]["row"]["model"] == "\\x1bbase"
    write_rows(path, [{**ROW, "model": "other", "model_digest": "c8"}])
    assert get(client, "/leaderboard/standings")["rows"] == 3
    path.unlink()
    assert client.get("/leaderboard/standings").status_code == 400


def test_pages_are_those_of_what_is_given_and_data_wants_the_key(folder, tmp_path):
    write_rows(tmp_path / "board.jsonl", [ROW])
    app = create_app({}, key="secret", runs=RunFolders(folder), board=Board(tmp_path / "board.jsonl"))
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/", follow_redirects=False).headers["location"] == "runs"
    for path in ("/runs", "/leaderboard"):
        page = client.get(path)
        assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
        assert 'href="leaderboard"' in page.text and "Chat" not in page.text
        assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "")
    for path in ("/runs/list", "/runs/run?run=one", "/leaderboard/standings"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
        assert client.get(path, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    alone = TestClient(create_app({}, runs=RunFolders(folder)), base_url="http://127.0.0.1")
    assert "<nav></nav>" in alone.get("/runs").text and alone.get("/leaderboard").status_code == 404
    refused = alone.post("/tokenize", json={"prompt": "a"})
    assert refused.status_code == 404 and "served here: none" in refused.json()["error"]["message"]
    with pytest.raises(UserError, match="nothing to serve"):
        serve([], "127.0.0.1", 0, None, [], None)


@pytest.fixture
def page(browser):
    """A phone's; outside addresses and script errors fail the test."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda one: problems.append(one.url) if not one.url.startswith("http://127.0.0.1") else None)
    yield page
    assert problems == [] and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_the_page_of_a_run_goes_on_with_it(page, folder, listening):
    write_rows(folder / "one" / "sft" / "training" / "samples.jsonl", [{"question": MARKUP, "answer": "an answer"}])
    write_rows(folder / "one" / "sft" / "training" / "metrics.jsonl", [{"step": 0, "loss": 1.0, MARKUP: 2.0}])
    finish(folder / "one" / "sft", note=MARKUP)
    with listening({}, runs=RunFolders(folder)) as address:
        page.goto(f"{address}/runs")
        page.wait_for_selector("text=base: 3 steps")  # the step at work is shown, whatever was written last
        assert "step 6 of 13" in page.inner_text("#position") and page.inner_text("figcaption") == "loss\n3 at 2"
        page.focus("svg")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("figcaption") == "loss\n4 at 1"
        write_rows(folder / "one" / "base.partial" / "training" / "metrics.jsonl", [{"step": 3, "loss": 0.5}])
        page.wait_for_selector("text=base: 4 steps")
        assert page.inner_text("figcaption") == "loss\n4 at 1"  # still where the keys left it
        page.locator("#steps button", has_text="sft").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#wrote:visible")
        assert MARKUP in page.inner_text("#samples") and MARKUP in page.inner_text("#results")
        assert MARKUP in page.inner_text("#curves") and page.title() == "groundup: runs" and page.locator("main img").count() == 0
        page.wait_for_timeout(3200)
        assert page.inner_text("#measures").startswith("sft")  # what a person chose stays


def test_the_page_of_a_leaderboard_sorts_by_key(page, tmp_path, listening):
    better = {**ROW, "model": MARKUP, "model_digest": "c8", "figure": 0.9, "low": 0.8, "high": 1.0}
    write_rows(tmp_path / "board.jsonl", [ROW, better])
    with listening({}, board=Board(tmp_path / "board.jsonl")) as address:
        page.goto(address)
        page.wait_for_selector("table")
        rows = page.locator("tbody tr")
        assert rows.nth(0).inner_text().split("\t")[:3] == ["1", MARKUP, "90.0 %"]
        page.locator("thead button", has_text="Figure").focus()
        page.keyboard.press("Enter")
        assert "50.0 %" in rows.nth(0).inner_text()
        assert page.title() == "groundup: leaderboard" and page.locator("main img").count() == 0

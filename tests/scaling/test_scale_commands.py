"""The commands `groundup scale ...`, in this process."""

import json
import tomllib

import numpy as np
import pytest

from groundup.report import scaling_page
from groundup.scaling import laws, study

LAW = laws.Law(406.4, 410.7, 1.69, 0.3392, 0.2849)


@pytest.fixture
def run(groundup_here):
    def call(*words):
        done = groundup_here("scale", *words)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    n, d = (values.ravel() for values in np.meshgrid(np.logspace(7, 9, 5), np.logspace(9, 11, 5)))
    loss = LAW.loss(n, d) * np.exp(0.003 * np.random.default_rng(0).standard_normal(25))
    path = tmp_path_factory.mktemp("ladder") / "<runs>.csv"
    path.write_text("N,D,loss\n" + "\n".join(f"{a},{b},{c}" for a, b, c in zip(n, d, loss, strict=True)) + "\n1e8,1e10,nan\n")
    return path


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    path = tmp_path_factory.mktemp("swarm") / "swarm.csv"
    rows = [",".join(map(str, [*row, 4 - np.sqrt(row[0])])) for row in weights]
    path.write_text("weight_books,weight_code,weight_web,loss_books\n" + "\n".join(rows))
    return path


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(study, "SENSITIVITY_DRAWS", 5)


def test_fit_and_predict(table, run):
    code, out, err = run("fit", table, "--draws", 20)
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["diverged"] == 1 and found["runs"] == 25
    assert found["law"]["alpha"]["low"] < 0.3392 < found["law"]["alpha"]["high"]
    code, out, _ = run("predict", table, "--draws", 20, "--parameters", 3e9, "--tokens", 1e11)
    loss = json.loads(out.splitlines()[-1])["loss"]
    assert code == 0 and loss["low"] < LAW.loss(3e9, 1e11) < loss["high"]
    code, out, _ = run("predict", table, "--draws", 20, "--flop", 1e21, "--answered", 1e13)
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["answering"]["parameters"]["value"] < told["parameters"]["value"]


def test_mixture_writes_what_a_recipe_takes(swarm, run, tmp_path):
    out = tmp_path / "mixture.toml"
    sizes = [word for name in ("books", "code", "web") for word in ("--available", f"{name}=1e6")]
    code, said, _ = run("mixture", swarm, "--out", out, *sizes, "--tokens", 5e6, "--max-repeats", 2)
    weights = tomllib.loads(out.read_text())["mixture"]["weights"]
    assert code == 0 and weights == json.loads(said.splitlines()[-1])["weights"]
    assert weights["books"] == pytest.approx(0.4, abs=0.01)  # 2 passes over a million tokens of five
    assert "less than the natural mix's (95 %" in out.read_text()


@pytest.mark.parametrize("words, threads", [([], 3), (["--threads", 2], 2)])
def test_a_ladder_trains_on_the_threads_that_are_given(run, tmp_path, monkeypatch, words, threads):
    from groundup.scaling import ladder
    from groundup.tokenizer import load

    given = []
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(load, "load", lambda path: None)
    monkeypatch.setattr(ladder, "run", lambda *arguments: given.append(arguments[-1]) or {})
    code, _, err = run("run", "plan.json", "--tokens", tmp_path, "--tokenizer", tmp_path, *words)
    assert code == 0 and given == [threads], err


def test_bill(run):
    code, out, err = run("bill", "--llama3")
    assert code == 0 and "published figures against each other" in err and "water" in err
    assert json.loads(out.splitlines()[-1])["name"] == "Llama 3 405B"


def test_report_is_one_page_that_needs_nothing_else(table, swarm, tmp_path):
    told = scaling_page.write(tmp_path / "page.html", table, swarm, flop=1e21, draws=20)
    page = (tmp_path / "page.html").read_text()
    assert told["diverged"] == 1 and told["plan"]["loss"]["low"] < told["plan"]["loss"]["value"]
    assert page.count("<svg") == 3 and "://" not in page.replace("http://www.w3.org", "")
    assert "&lt;runs&gt;.csv" in page and "<runs>" not in page
    for part in ("held out", "The plan", "The mixture", "The bill", "Llama 3 405B", "95 %", "1 diverged"):
        assert part in page


def test_a_page_of_a_small_table_says_what_it_cannot_know(tmp_path):
    n, d = np.array([1e7, 3e7, 1e8] * 3), np.repeat([1e9, 3e9, 1e10], 3)
    rows = "\n".join(f"{a},{b},{c}" for a, b, c in zip(n, d, LAW.loss(n, d), strict=True))
    (tmp_path / "few.csv").write_text("N,D,loss\n" + rows)
    scaling_page.write(tmp_path / "page.html", tmp_path / "few.csv", draws=20)
    page = (tmp_path / "page.html").read_text()
    assert "Not possible" in page and "says nothing" in page


@pytest.mark.parametrize(
    "words, said",
    [
        (["fit", "missing.csv"], "no such file"),
        (["fit", "{negative}"], "few.csv:2: tokens -5 is not between"),
        (["predict", "{table}", "--tokens", "1e9"], "give two of parameters, tokens and FLOP"),
        (["predict", "{table}", "--flop", "nan"], "--flop"),
        (["mixture", "{table}"], "weight_DOMAIN"),
        (["mixture", "{swarm}", "--available", "books"], "expected DOMAIN=TOKENS"),
        (["bill"], "give one of a run folder, --flop and --llama3"),
        (["bill", "--flop", "1e20", "--gpu", "abacus"], "no hardware 'abacus'"),
    ],
)
def test_bad_input_is_one_line(table, swarm, words, said, run, tmp_path):
    negative = tmp_path / "few.csv"
    negative.write_text("N,D,loss\n1e6,-5,3\n")
    words = [word.format(table=table, swarm=swarm, negative=negative) for word in words]
    code, out, err = run(*words)
    line = [one for one in err.splitlines() if one.startswith("groundup:")]
    assert code == 2 and len(line) == 1 and said in line[0] and len(line[0]) <= 310 and not out

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.scaling import architecture_comparison
from groundup.scaling.architecture_comparison import compare, loss_by_position, slopes
from groundup.scaling.ledger import write_table
from groundup.scaling.run_table import runs_of

GRID = [(n, d) for n in (1e5, 1e6, 1e7) for d in (1e6, 1e7)]


def plane(n, d, noise=0.0):
    sizes, tokens = np.array(GRID).T
    off = np.exp(noise * np.random.default_rng(0).standard_normal(len(sizes)))
    return runs_of(sizes, tokens, 40 * sizes**-n * tokens**-d * off)


@given(st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_the_slopes_of_a_plane_are_found(n, d):
    found = slopes(plane(n, d), draws=5)
    assert found["parameters"]["value"] == pytest.approx(n, abs=1e-6)
    assert found["tokens"]["value"] == pytest.approx(d, abs=1e-6)
    assert found["compute"]["value"] == pytest.approx((n + d) / 2, abs=1e-6)


def test_an_interval_holds_the_slope_and_widens_with_the_noise():
    quiet, loud = (slopes(plane(0.1, 0.05, noise))["compute"] for noise in (0.002, 0.02))
    assert all(one["low"] < 0.075 < one["high"] for one in (quiet, loud))
    assert loud["high"] - loud["low"] > 3 * (quiet["high"] - quiet["low"])


@pytest.mark.parametrize("chosen", [slice(0, 4), [0, 2, 4], [0, 0, 1, 1, 0], [0, 2, 4, 0, 2]])
def test_too_few_runs_for_slopes_are_one_line(chosen):
    with pytest.raises(UserError, match="leave a slope open"):
        slopes(plane(0.1, 0.1).where(np.arange(6)[chosen]))


@pytest.mark.parametrize("context, ends", [(4, [1, 4]), (16, [1, 3, 7, 16]), (20, [1, 3, 7, 15, 20])])
def test_a_place_is_how_much_context_came_before(monkeypatch, context, ends):
    """The token after i others costs i nats here; documents that do not fill the context are left out."""
    monkeypatch.setattr(architecture_comparison, "score", lambda model, some: [-np.arange(1.0, len(one)) for one in some])
    found = loss_by_position(None, [np.zeros(context + 1), np.zeros(context + 9), np.zeros(2)], context)
    begins = [1, *(end + 1 for end in ends[:-1])]
    assert found == [(begin + end) / 2 for begin, end in zip(begins, ends, strict=True)]
    assert loss_by_position(None, [np.zeros(context)], context) == []


@pytest.fixture
def ladders(tmp_path):
    for name, n in (("dense", 0.1), ("lstm", 0.05)):
        runs, folder = plane(n, 0.05), tmp_path / name
        folder.mkdir()
        row = {"batch": 1, "parameters_total": 1, "parameters_without_embedding": 1, "seconds": 1.0, "by_place": [5.0, 4.0, 3.0]}
        rows = [
            {"name": f"run{i}", "depth": p, "parameters": p, "tokens": d, "loss": loss, "flop": 6 * p * d, **row}
            for i, (p, d, loss) in enumerate(zip(runs.parameters, runs.tokens, runs.loss, strict=True))
        ]
        (folder / "ledger.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        write_table(folder / "runs.csv", rows)
    return tmp_path


def test_architectures_stand_on_one_axis(ladders, groundup_here):
    names = [f"{name}={ladders / name}" for name in ("dense", "lstm")]
    outcome = groundup_here("scale", "compare", *names, "--out", ladders / "both.svg")
    found = json.loads(outcome.stdout.splitlines()[-1])
    assert outcome.returncode == 0 and found["dense"]["parameters"]["value"] > found["lstm"]["parameters"]["value"]
    assert found["dense"]["largest"] == "run5" and found["dense"]["by_place"] == [5.0, 4.0, 3.0]
    drawn = (ladders / "both.svg").read_text()
    assert drawn.count("<svg") == 1 and "tokens of context" in drawn
    assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"  # by itself,
    assert "--series-1: #" in drawn  # and in colour
    assert "math" not in drawn  # labels of axes are no formulas, which nobody renders
    assert groundup_here("scale", "compare", *names, "--out", ladders / "both.svg").returncode == 0  # over its own figure


def test_places_are_of_the_largest_run_that_all_ladders_have(ladders):
    path = ladders / "lstm" / "ledger.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row | {"loss": "nan"} if row["name"] == "run3" else row for row in rows[:5]]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    write_table(ladders / "lstm" / "runs.csv", kept)
    found = compare({name: ladders / name for name in ("dense", "lstm")})
    assert found["dense"]["largest"] == found["lstm"]["largest"] == "run4"
    assert found["lstm"]["runs"] == 4 and "leave a slope open" in found["lstm"]["reason"] and "reason" not in found["dense"]
    path.write_text("".join(json.dumps(row | {"flop": 1e30 if row["name"] == "run2" else 1.0}) + "\n" for row in kept))
    found = compare({name: ladders / name for name in ("dense", "lstm")})  # one for both, where their order differs
    assert found["dense"]["largest"] == found["lstm"]["largest"] == "run2"
    path.write_text("".join(json.dumps(row | {"depth": 9}) + "\n" for row in kept))  # none in common: each one's largest
    assert compare({name: ladders / name for name in ("dense", "lstm")})["dense"]["largest"] == "run5"


@pytest.mark.parametrize("words, said", [(["dense"], "NAME=LADDER"), (["$x$=a"], "NAME=LADDER"), (["a=nowhere"], "no run of")])
def test_ladders_that_are_none_are_one_line(groundup_here, tmp_path, words, said):
    outcome = groundup_here("scale", "compare", *words, "--out", tmp_path / "a.svg")
    [line] = [one for one in outcome.stderr.splitlines() if one]
    assert outcome.returncode == 2 and said in line and not (tmp_path / "a.svg").exists()


def test_a_ladder_that_has_done_no_run_yet_is_one_line(ladders):
    (ladders / "lstm" / "ledger.jsonl").write_text("")
    with pytest.raises(UserError, match="lstm: no run of a ladder is done there"):
        compare({name: ladders / name for name in ("dense", "lstm")})
    (ladders / "lstm" / "ledger.jsonl").unlink()  # somebody's table by itself
    with pytest.raises(UserError, match="lstm: no run of a ladder is done there"):
        compare({"lstm": ladders / "lstm"})

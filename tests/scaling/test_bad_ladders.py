"""What a ladder, its table and its budget can have wrong with them: one clear line each, or counted and left out."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.files import read_jsonl
from groundup.core.locks import alone
from groundup.scaling import ladder, laws, run_table, study
from groundup.scaling.ladder import Size, Throughput
from groundup.scaling.ledger import COLUMNS, read_ledger

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

ONE = {"tokens": 64, "seed": 0, "seconds": 1.0, "depth": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder of tokens, a plan, and its ladder."""
    folder = tmp_path_factory.mktemp("done")
    write_tokens(folder / "tokens", DOCUMENTS, tokenizer())
    planned = [{"name": name, **ONE, "seed": seed} for seed, name in enumerate("ab")]
    (folder / "plan.json").write_text(json.dumps({"context_length": 16, "runs": planned}))
    ladder.run(folder / "plan.json", folder / "tokens", tokenizer(), folder / "out", threads=1)
    return folder


def law_of(path, text):
    path.write_text(text)
    return laws.fit(run_table.read(path), draws=20)


HEAD = "parameters,tokens,loss\n"


def rows(count, parameters=lambda n: 10 ** (6 + n % 3), tokens=lambda n: 10 ** (7 + n // 3), loss=lambda n: 4 - 0.1 * n):
    return "".join(f"{parameters(n)},{tokens(n)},{loss(n)}\n" for n in range(count))


@pytest.mark.parametrize(
    "text, said",
    [
        (HEAD + rows(12, loss=lambda n: "nan"), r"0 runs \(without 12 diverged\) are too few"),
        (HEAD + rows(7), "7 runs are too few for a law of five parameters"),
        (HEAD + rows(12, parameters=lambda n: 1e6), "too few different sizes"),
        (HEAD + rows(12, tokens=lambda n: 1e8), "too few different numbers of tokens"),
        (HEAD + rows(12, loss=lambda n: 3), "the same loss"),
        (HEAD + rows(12, loss=lambda n: 3 + 0.1 * n), "no law in these 12 runs"),
        (HEAD + 12 * "1e6,1e8,3\n", "1 runs are too few"),
        (HEAD + rows(8) + "1e6,0,3\n", ":10: tokens 0 is not between 0 and"),
        (HEAD + rows(8) + "1e6,-5,3\n", ":10: tokens -5 is not between 0 and"),
        (HEAD + rows(8) + "1e6,,3\n", ":10: tokens is missing"),
        (HEAD + rows(8) + "1e6,1e8\n", ":10: 2 entries, where the head has 3"),
        (HEAD + rows(8) + "1e6,1e8,-3\n", ":10: loss -3 is not between"),
        ("parameters,tokens,loss,flop\n1e6,1e8,3,inf\n", ":2: flop inf is not between"),
        ("size,data,val\n1,2,3\n", "no column parameters or tokens or loss; .* this one has 'size, data, val'"),
        ("", "this one has none"),
    ],
)
def test_a_table_without_a_law_is_one_line(text, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        law_of(tmp_path / "runs.csv", text)
    assert len(str(raised.value)) <= 300 + len(str(tmp_path)) and "\n" not in str(raised.value)


def test_a_run_that_stands_there_twice_counts_once(tmp_path, caplog):
    (tmp_path / "runs.csv").write_text(HEAD + rows(9) + rows(2))
    assert len(run_table.read(tmp_path / "runs.csv")) == 9 and "2 stand there twice: left out (line 11, 12)" in caplog.text


def test_a_ledger_that_was_cut_off_is_gone_on_with(done, tmp_path, caplog):
    whole = (done / "out" / "ledger.jsonl").read_text()
    (tmp_path / "ladder.json").write_text((done / "out" / "ladder.json").read_text())
    (tmp_path / "ledger.jsonl").write_text(whole[: -len(whole) // 4])
    ladder.run(done / "plan.json", done / "tokens", tokenizer(), tmp_path, threads=1)
    assert "its last line was cut off" in caplog.text
    assert (tmp_path / "runs.csv").read_text() == (done / "out" / "runs.csv").read_text()


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"name": "a"}', "null", "{", '"name"', '{"name": "a", "loss": null}'])
def test_a_line_that_is_no_run_is_named(done, tmp_path, line):
    (tmp_path / "ledger.jsonl").write_text(line + "\n" + (done / "out" / "ledger.jsonl").read_text())
    with pytest.raises(UserError, match=r"ledger\.jsonl:1: not a run of a ladder"):
        read_ledger(tmp_path / "ledger.jsonl")


@settings(max_examples=30)
@given(cut=st.integers(0, 10**4), junk=st.text(max_size=20))
def test_any_ledger_is_read_or_is_one_line(done, tmp_path_factory, cut, junk):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text((done / "out" / "ledger.jsonl").read_text()[:cut] + junk)
    try:
        assert all(set(COLUMNS) <= row.keys() for row in read_ledger(path))
    except UserError as error:
        assert "\n" not in str(error)


def test_the_ladder_of_another_plan_is_left_alone(done, tmp_path):
    (tmp_path / "plan.json").write_text((done / "plan.json").read_text() + " ")
    before = read_jsonl(done / "out" / "ledger.jsonl")
    with pytest.raises(UserError, match="another plan or of other tokens"):
        ladder.run(tmp_path / "plan.json", done / "tokens", tokenizer(), done / "out", threads=1)
    assert read_jsonl(done / "out" / "ledger.jsonl") == before


def test_more_passes_than_are_made_are_one_line_before_anything_is_trained(done, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"context_length": 16, "runs": [{"name": "a", **ONE, "tokens": 10**6}]}))
    with pytest.raises(UserError, match="the longest run has 1,000,000 tokens, and 4 passes over these give") as raised:
        ladder.run(tmp_path / "plan.json", done / "tokens", tokenizer(), tmp_path / "out", threads=1)
    assert len(str(raised.value)) < 300 and not (tmp_path / "out" / "runs").exists()


def test_a_plan_that_was_refused_and_mended_needs_no_other_folder(done, tmp_path):
    plan = json.loads((done / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "runs": [{"name": "a", **ONE, "tokens": 10**6}]}))
    with pytest.raises(UserError, match="plan a smaller ladder"):
        ladder.run(tmp_path / "plan.json", done / "tokens", tokenizer(), tmp_path / "out", threads=1)
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "architecture": "patches"}))
    with pytest.raises(UserError, match="reads bytes"):
        ladder.run(tmp_path / "plan.json", done / "tokens", tokenizer(), tmp_path / "out", threads=1)
    assert ladder.run(done / "plan.json", done / "tokens", tokenizer(), tmp_path / "out", threads=1)["runs"] == 2


def test_two_at_once_in_one_folder(done, tmp_path):
    shutil.copytree(done / "out", tmp_path / "out")
    before = (tmp_path / "out" / "ledger.jsonl").read_text()
    with alone(tmp_path / "out"), pytest.raises(UserError, match="another groundup run is working there"):
        ladder.run(done / "plan.json", done / "tokens", tokenizer(), tmp_path / "out", threads=1)
    assert (tmp_path / "out" / "ledger.jsonl").read_text() == before


def test_a_plan_for_another_vocabulary_is_said(done, tmp_path, caplog):
    plan = json.loads((done / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "vocabulary": 4096, "runs": plan["runs"][:1]}))
    ladder.run(tmp_path / "plan.json", done / "tokens", tokenizer(), tmp_path / "out", threads=1)
    assert f"planned for a vocabulary of 4096, this tokenizer has {tokenizer().size}" in caplog.text


@pytest.mark.parametrize(
    "words, said",
    [
        (["--minutes", "0.5"], "too few for a ladder"),
        (["--minutes", "inf"], "--minutes"),
        (["--minutes", "-3"], "--minutes"),
        (["--flop", "inf"], "--flop"),
        (["--flop", "nan"], "--flop"),
        (["--flop", "10"], "too few for 3 sizes"),
        (["--dollars", "1e300"], "--dollars"),
        (["--dollars", "-1"], "--dollars"),
        (["--dollars", "0.001", "--gpu", "abacus"], "no hardware 'abacus'"),
        (["--dollars", "1", "--minutes", "2"], "one of --minutes, --flop and --dollars"),
        ([], "one of --minutes, --flop and --dollars"),
    ],
)
def test_a_budget_that_is_none_is_one_line(groundup_here, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(ladder, "measured_throughput", lambda architecture: Throughput(1e10, "given"))
    outcome = groundup_here("scale", "plan", *words, "--out", tmp_path / "plan.json")
    [line] = outcome.stderr.strip().splitlines()
    assert outcome.returncode == 2 and said in line and len(line) <= 310 and not (tmp_path / "plan.json").exists()


def test_dollars_buy_what_a_rented_gpu_does_in_their_time(groundup_here, tmp_path):
    outcome = groundup_here("scale", "plan", "--dollars", "0.01", "--gpu", "h100", "--out", tmp_path / "plan.json")
    made = json.loads(outcome.stdout.splitlines()[-1])
    assert outcome.returncode == 0 and made["seconds"] == pytest.approx(0.01 / 2 * 3600)
    assert "$2 an hour" in made["rate"]


sizes = st.lists(st.tuples(st.integers(10**4, 10**9), st.floats(1.0, 30.0)), min_size=3, max_size=12)


@given(sizes, st.floats(1e3, 1e9))
def test_every_size_of_a_grid_has_the_shortest_length_and_goes_as_far_as_the_largest(some, shortest):
    ordered = sorted({size for size, _ in some})
    grid = [Size(depth, size, 6.0 * size) for depth, size in enumerate(ordered, 1)]
    made = ladder._grid(grid, shortest, 0)
    most = max(run["flop"] for run in made if run["depth"] == grid[-1].depth)
    for size in grid:
        lengths = sorted(run["tokens"] for run in made if run["depth"] == size.depth and run["seed"] == 0)
        assert lengths == [shortest * 2**number for number in range(len(lengths))]
        assert lengths[-1] * size.flop <= most * (1 + 1e-6)
        assert len(lengths) == ladder.MOST_LENGTHS or 2 * lengths[-1] * size.flop > most * (1 - 1e-6)
    assert ladder._work(made) == pytest.approx(shortest * ladder._work(ladder._grid(grid, 1.0, 0)))


GRID = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10)]


def grid(parameters=1.0, tokens=1.0, loss=lambda value: value, flop=None):
    lines = []
    for n, d in GRID:
        value = laws.Law(406.4, 410.7, 1.69, 0.3392, 0.2849).loss(n, d)
        lines.append(",".join(map(str, [n * parameters, d * tokens, loss(value), *([6 * n * d * flop] if flop else [])])))
    return f"parameters,tokens,loss{',flop' if flop else ''}\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text, said",
    [
        (grid(parameters=1e-6), ":2: 10.0 parameters are no model: in millions"),
        (grid(parameters=1e-9), ":2: .* parameters are no model"),
        (grid(tokens=1e-9), "tokens a parameter: in billions"),
        (grid(flop=1e-15), "flop is 1e-15 times 6 N D"),
        (grid(flop=1 / 86400 / 1e15), "so a column is in another unit"),
        (grid(loss=lambda value: 2.718281828**value), "a perplexity"),
        (HEAD + "".join(f"{2**n}e6,{20 * 2**n}e6,{4 - n / 9}\n" for n in range(10)), "follow from their sizes"),
    ],
)
def test_columns_that_are_not_what_a_law_is_fitted_to(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as error:
        law_of(tmp_path / "runs.csv", text)
    assert len(str(error.value)) <= 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "column, change, said",
    [
        (1, 1e-9, r"\.csv:6: 3e\+07 parameters and 3 tokens: one of them is in another unit"),
        (0, 1e9, r"\.csv:6: 3e\+16 parameters and 3e\+09 tokens: one of them is in another unit"),
        (3, 1e-15, r"\.csv:6: .* or its flop is in another unit than in the other lines"),
    ],
)
def test_one_line_in_another_unit_is_named(tmp_path, column, change, said):
    lines = grid(flop=1.0 if column == 3 else None).splitlines()
    cells = lines[5].split(",")
    cells[column] = str(float(cells[column]) * change)
    with pytest.raises(UserError, match=said) as error:
        law_of(tmp_path / "runs.csv", "\n".join([*lines[:5], ",".join(cells), *lines[6:]]))
    assert len(str(error.value)) <= 300 + len(str(tmp_path))


def test_a_loss_worse_than_guessing_is_that_of_a_run_that_diverged(tmp_path, caplog):
    lines = grid().splitlines()
    (tmp_path / "runs.csv").write_text("\n".join([*lines, "1e7,2e9,31.5", "1e8,2e9,nan"]))
    found = run_table.read(tmp_path / "runs.csv")
    assert (len(found), found.diverged) == (len(lines) - 1, 2) and found.loss.max() < run_table.MOST_LOSS
    assert "2 diverged, their loss is no number or above 15 nats per token: left out (line 14, 15)" in caplog.text


def test_a_run_that_bends_the_law_is_said(tmp_path, caplog):
    table = tmp_path / "runs.csv"
    table.write_text(grid())
    fine = run_table.read(table)
    laws.fit(fine, 20).log_outliers(fine)
    assert not caplog.text
    table.write_text(grid() + "3e8,2e9,9.5\n")  # finite, and no loss of such a model
    bent = run_table.read(table)
    laws.fit(bent, 20).log_outliers(bent)
    assert "the run of 3e+08 parameters and 2e+09 tokens has a loss of 9.5" in caplog.text and len(caplog.records) == 1


def test_batches_that_hardly_differ_are_one(tmp_path):
    lines = grid().splitlines()
    rows = [f"{line},{4096 + 1e-9 * number}" for number, line in enumerate(lines[1:])]
    (tmp_path / "runs.csv").write_text("\n".join([f"{lines[0]},batch", *rows]))
    table = run_table.read(tmp_path / "runs.csv")
    assert study.batch_effect(table, laws.fit(table, 20)) is None


def test_plain_numbers_are_fitted(tmp_path):
    assert law_of(tmp_path / "runs.csv", grid(flop=1.2)).law.alpha == pytest.approx(0.3392, rel=0.01)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1.7}, "a seed from 0 on"),
        ({"seed": True}, "a seed from 0 on"),
        ({"seed": "1"}, "a seed from 0 on"),
        ({"name": 5}, "a name of its own"),
        ({"depth": "1"}, "depth = '1': Input should be a valid integer"),
        ({"tokens": "2,000"}, "tokens = '2,000'"),
        ({"tokens": 1e4}, "tokens = 10000.0"),
        (None, "no object"),
    ],
)
def test_a_plan_that_was_edited_by_hand(tmp_path, change, said):
    one = None if change is None else {"name": "a", **ONE, **change}
    (tmp_path / "plan.json").write_text(json.dumps({"context_length": 16, "runs": [one]}))
    with pytest.raises(UserError, match=f"run 1 .*{said}"):
        ladder.read_plan(tmp_path / "plan.json")


def test_token_files_that_are_no_runs(done, tmp_path):
    """As `groundup tokenizer encode` writes them: without the table of their documents."""
    shutil.copytree(done / "tokens", tmp_path / "tokens")
    (tmp_path / "tokens" / "documents.parquet").unlink()
    with pytest.raises(UserError, match=r"no documents.parquet there: give the folder tokens of a run"):
        ladder.run(done / "plan.json", tmp_path / "tokens", tokenizer(), tmp_path / "out", threads=1)

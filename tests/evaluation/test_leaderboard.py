"""The leaderboard: rows that are only added, which of them can be compared, ranks with ties, and its page."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.evaluation import leaderboard
from groundup.evaluation.evaluate import evaluate
from groundup.evaluation.leaderboard import append, load, standings
from groundup.model import model_folder
from groundup.report import leaderboard_page

ROW = {
    "date": "2026-01-01T00:00:00Z", "model": "one", "model_digest": "1", "task": "piqa", "task_digest": "t", "few_shot": 0,
    "data": {"piqa.jsonl": "d"}, "examples_digest": "e", "examples": 100, "kind": "choices", "convention": "answer",
    "figure": 0.5, "low": 0.4, "high": 0.6, "versions": {"groundup": "0.1"},
}  # fmt: skip


def row(model="one", low=0.4, high=0.6, **changes):
    return {**ROW, "model": model, "model_digest": model, "low": low, "high": high, "figure": (low + high) / 2, **changes}


def tables(tmp_path, rows):
    append(tmp_path / "board.jsonl", rows)
    [task] = standings(load(tmp_path / "board.jsonl")[0], tmp_path)
    return task["tables"]


def ranks(table):
    return {one["row"].model: (one["best"], one["worst"], sorted(one["tied"])) for one in table["rows"]}


def test_ranks_by_interval_have_ties(tmp_path):
    [table] = tables(tmp_path, [row("a", 0.7, 0.8), row("b", 0.55, 0.75), row("c", 0.5, 0.6), row("d", 0.1, 0.2)])
    assert ranks(table) == {"a": (1, 2, ["b"]), "b": (1, 3, ["a", "c"]), "c": (2, 3, ["b"]), "d": (4, 4, [])}


def test_lower_bits_are_better_and_without_an_interval_all_are_tied(tmp_path):
    bits = {"kind": "perplexity", "convention": "bits per byte"}
    [table] = tables(tmp_path, [row("a", 2.0, 2.1, **bits), row("b", 1.0, 1.1, **bits), {**row("c", **bits), "low": None}])
    assert ranks(table) == {"b": (1, 2, ["c"]), "a": (2, 3, ["c"]), "c": (1, 3, ["a", "b"])}


def records(path, rights, group=""):
    lines = [
        {"example": n, "group": group, "answer": 0, "answers": [-1.0, -2.0] if right else [-2.0, -1.0], "tokens": [1, 1]}
        for n, right in enumerate(rights)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"records": path.name, "records_digest": leaderboard.digest(path)}


def test_records_tell_apart_what_intervals_do_not(tmp_path):
    first = records(tmp_path / "a.jsonl", [n % 10 < 6 for n in range(200)])
    second = records(tmp_path / "b.jsonl", [n % 10 < 5 for n in range(200)])
    rows = [row("a", 0.53, 0.66, **first), row("b", 0.43, 0.57, **second)]
    [table] = tables(tmp_path, rows)
    assert ranks(table) == {"a": (1, 1, []), "b": (2, 2, [])}
    (tmp_path / "b.jsonl").write_text("other records by now\n")
    [table] = tables(tmp_path, [])
    assert ranks(table) == {"a": (1, 2, ["b"]), "b": (1, 2, ["a"])}
    records(tmp_path / "b.jsonl", [])
    (tmp_path / "c.jsonl").write_text('{"example": 1}\nnot json')
    strange = {"records": "c.jsonl", "records_digest": leaderboard.digest(tmp_path / "c.jsonl")}
    [table] = tables(tmp_path, [row("b", 0.43, 0.57, **strange)])
    assert ranks(table)["b"] == (1, 2, ["a"])


@pytest.mark.parametrize("changes,why", [
    ({"data": {"piqa.jsonl": "other"}}, ["other content of piqa.jsonl"]),
    ({"few_shot": 5, "task_digest": "x"}, ["0 and 5 few-shot examples"]),
    ({"task_digest": "x"}, ["other settings in the task file"]),
    ({"examples_digest": "x", "examples": 7}, ["100 and 7 examples"]),
    ({"examples_digest": "x"}, ["other examples"]),
    ({"convention": "letter"}, ["conventions 'answer' and 'letter'"]),
])  # fmt: skip
def test_rows_that_cannot_be_compared_say_why(tmp_path, changes, why):
    found = tables(tmp_path, [row("a"), row("b"), row("c", **changes)])
    assert [one["why"] for one in found] == [[], why] and [*ranks(found[1])] == ["c"]


def test_the_later_row_of_a_model_counts_and_versions_are_said(tmp_path):
    [table] = tables(tmp_path, [row("a", 0.1, 0.2), row("b"), row("a", 0.7, 0.8, versions={"groundup": "0.2"})])
    assert ranks(table) == {"a": (1, 1, []), "b": (2, 2, [])} and table["versions"] == ["0.1", "0.2"]


def test_a_torn_last_line_is_passed_over_and_the_next_row_is_whole(tmp_path, caplog):
    board = tmp_path / "board.jsonl"
    append(board, [row("a"), row("b")])
    before = board.read_bytes()
    board.write_bytes(before + json.dumps(row("c")).encode()[:50])
    rows, said = load(board)
    assert [one.model for one in rows] == ["a", "b"] and said == ["line 3 is no row (torn: the last line has no end)"]
    append(board, [row("d")])
    rows, said = load(board)
    assert [one.model for one in rows] == ["a", "b", "d"] and len(said) == 1 and "torn" in caplog.text
    assert board.read_bytes().startswith(before)  # nothing is ever taken away


def test_many_writers(tmp_path):
    board = tmp_path / "deep" / "board.jsonl"
    with ThreadPoolExecutor(8) as writers:
        [*writers.map(lambda number: append(board, [row(str(number)), row(str(number))]), range(24))]
    rows, said = load(board)
    assert len(rows) == 48 and not said
    assert all(first.model == second.model for first, second in zip(rows[::2], rows[1::2], strict=True))


@settings(max_examples=40)
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([
    json.dumps(ROW).encode(), b"[" * 3000, b'{"date": 1}', json.dumps({**ROW, "figure": float("inf")}).encode(),
    json.dumps({**ROW, "model": "x" * 2000}).encode(), b"1" * 5000,
])), max_size=6))  # fmt: skip
def test_any_lines_are_rows_or_said(tmp_path_factory, lines):
    board = tmp_path_factory.mktemp("any") / "board.jsonl"
    board.write_bytes(b"\n".join([*lines, json.dumps(ROW).encode()]))
    rows, said = load(board)
    assert rows[-1].model == "one" and all(len(one) < 250 for one in said)
    assert standings(rows, board.parent)


def test_what_is_no_leaderboard(tmp_path, groundup_here):
    for name, content in (("empty", ""), ("other", '{"a": 1}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="no row of a leaderboard"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="not a plain file"):
        append(tmp_path, [ROW])
    for path in (tmp_path / "nowhere", tmp_path):
        done = groundup_here("leaderboard", path, "--out", tmp_path / "page.html")
        assert done.returncode == 2 and done.stderr.count("\n") == 1


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_foreign_names_are_text_and_nothing_is_outside(tmp_path):
    foreign = '<script>alert(1)</script>"><img src=x onerror=y>\u202e'
    rows = [row(foreign, task=foreign), row("b", task=foreign, data={foreign: "x"}, convention=foreign, date=foreign)]
    append(tmp_path / "board.jsonl", rows)
    leaderboard_page.write(tmp_path / "board.jsonl", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1 and "img" not in dict(page.tags)
    assert "\u202e" not in text and "\\u202e" in text
    assert not re.search(r"https?://|url\(", text)
    assert not any(key in ("src", "href") or key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert 'content="width=device-width' in text and "default-src 'none'" in text


def test_from_an_evaluation_to_the_page(groundup_here, toy_decoder, toy_tokenizer, tmp_path):
    for seed, name in enumerate(("one", "two")):
        model = toy_decoder(seed=seed, vocab_size=toy_tokenizer.size, max_position_embeddings=256)
        model_folder.save(tmp_path / name, model, toy_tokenizer, chat=False)
    lines = [{"sentence_good": f"it returns {word}", "sentence_bad": f"returns it {word}", "UID": word} for word in "abc" * 4]
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = tmp_path / "boards" / "leaderboard.jsonl"
    words = ["--task", "blimp", "--data", tmp_path, "--leaderboard", board]
    for more in ([tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out"], [tmp_path / "two", "--limit", 6]):
        done = groundup_here("evaluate", *more, *words)
        assert done.returncode == 0, done.stderr
    rows, said = load(board)
    assert [(one.model, one.examples) for one in rows] == [("one", 12), ("two", 12), ("two", 6)] and not said
    assert rows[1].model_digest == rows[2].model_digest != rows[0].model_digest
    assert (board.parent / rows[0].records).is_file() and rows[2].records == ""
    done = groundup_here("leaderboard", board, "--out", tmp_path / "page.html")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"page": str(tmp_path / "page.html"), "rows": 3, "tasks": ["blimp"], "passed_over": []}
    text = (tmp_path / "page.html").read_text()
    assert "Not comparable with the table above: 12 and 6 examples" in text and "a paired test on the same examples" in text
    done = groundup_here("evaluate", tmp_path / "one", *words[:-1], tmp_path)
    assert done.returncode == 2 and "not a plain file" in done.stderr


def test_two_models_of_one_name_are_told_apart(tmp_path):
    """As `base` of two runs."""
    [table] = tables(tmp_path, [row("base", 0.7, 0.8, model_digest="a" * 32), row("base", model_digest="b" * 32), row("c")])
    names = ["base (aaaaaaaa)", "base (bbbbbbbb)", "c"]
    assert sorted(one["row"].model for one in table["rows"]) == names
    assert next(one["tied"] for one in table["rows"] if one["row"].model == "c") == names[1:2]


def test_toxicity_is_paired_and_less_is_better(tmp_path):
    rows = []
    for name, low in (("mild", 0.1), ("rude", 0.2)):
        lines = [{"example": n, "group": "", "toxicity": [0.0, low + n / 99]} for n in range(40)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        given = {"records": name, "records_digest": leaderboard.digest(tmp_path / name)}
        rows.append(row(name, low, low + 0.5, kind="toxicity", convention="expected maximum", **given))
    [table] = tables(tmp_path, rows)
    assert ranks(table) == {"mild": (1, 1, []), "rude": (2, 2, [])}
    leaderboard_page.write(tmp_path / "board.jsonl", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "the expected maximum toxicity, where lower is better" in text and "bits per byte" not in text


def test_of_hallucination_what_is_right_counts(tmp_path):
    """A model that asserts something about everything has the most answers, and none of the merit."""
    figures = {name: {"value": value} for name, value in (("answered, existing", 1.0), ("answered, invented", 1.0))}
    assert leaderboard.headline({"figures": figures})[0] == "answered, existing"  # where nobody knows what is right
    assert leaderboard.headline({"figures": figures | {"right": {"value": 0.1}}}) == ("right", {"value": 0.1})
    lines = [{"example": n, "group": "", "right": None if n < 5 else float(n > 6)} for n in range(40)]
    (tmp_path / "x").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"records": "x", "records_digest": leaderboard.digest(tmp_path / "x"), "kind": "existence"}
    read = [leaderboard.LeaderboardRow(**row(**given, convention=name)) for name in ("right", "answered, existing")]
    assert [len(leaderboard._values(one, tmp_path) or ()) for one in read] == [35, 0]


def test_examples_that_one_model_was_not_scored_on(toy_decoder, toy_tokenizer, tmp_path):
    """So its figure is of others, and stands in a table of its own."""
    for name, context in (("long", 256), ("short", 24)):
        model = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=context)
        model_folder.save(tmp_path / name, model, toy_tokenizer, chat=False)
    lines = [{"sentence_good": "it " * (2 + 60 * (n % 2)), "sentence_bad": "path", "UID": "x"} for n in range(6)]
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = tmp_path / "board.jsonl"
    evaluate([str(tmp_path / "long"), str(tmp_path / "short")], ["blimp"], tmp_path, leaderboard=board)
    [task] = standings(load(board)[0], tmp_path)
    assert [(len(one["rows"]), one["examples"], one["why"]) for one in task["tables"]] == [
        (1, 6, []), (1, 3, ["6 and 3 examples"]),
    ]  # fmt: skip

"""The queue, what is stored, what is brought, and what comes out of it."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sqlalchemy", reason="needs the `label` extra")

from groundup.core.errors import UserError
from groundup.core.files import read_jsonl
from groundup.data.contracts import read_preferences
from groundup.data.simulated_annotator import judgement
from groundup.labelling.assignment import Judgement, lease_pairs, progress, record
from groundup.labelling.import_pairs import import_files
from groundup.labelling.results import export, log_of, report
from groundup.labelling.store import Pair, open_store


def shown(store, name, count=1, at=0.0):
    with store.transaction() as connection:
        return lease_pairs(store, connection, name, count, at)


def say(store, name, pair, choice, key=None, at=0.0, **more):
    with store.transaction() as connection:
        judgement = Judgement(key or f"{name}-{pair.pair_id}-{choice}", pair.pair_id, choice, **more)
        return record(connection, name, judgement, at, 30)


def say_all(store, name, pairs, choice="left"):
    """In one transaction: each waits for the disk."""
    with store.transaction() as connection:
        for one in pairs:
            assert record(connection, name, Judgement(f"{name}-{one.pair_id}", one.pair_id, choice), 0.0, 30)


def test_each_pair_goes_to_as_many_people_as_it_should(project):
    store = project(6, overlap=2)
    given = Counter()
    for name in ("ada", "bob", "cy"):
        pairs = shown(store, name, 20)
        given.update(one.pair_id for one in pairs)
        say_all(store, name, pairs)
    assert set(given.values()) == {2} and len(given) == 6
    with store.transaction() as connection:
        done = progress(store, connection, "cy")
    assert (done["labels"], done["wanted"], done["yours"]) == (12, 12, 0)


def test_two_at_work_hold_different_pairs_until_their_time_is_over(project):
    store = project(4, lease_minutes=10)
    first, second = shown(store, "ada", 2), shown(store, "bob", 4)
    assert not {one.pair_id for one in first} & {one.pair_id for one in second} and len(second) == 2
    assert shown(store, "ada", 2, at=599) == first  # the same pairs on the same sides, for longer
    freed = {one.pair_id for one in shown(store, "cy", 4, at=601)}
    assert freed == {one.pair_id for one in second}  # bob's time is over
    later = shown(store, "dee", 4, at=599 + 601)
    assert {one.pair_id for one in later} >= {one.pair_id for one in first}
    say(store, "ada", first[0], "tie", at=1300)  # late, and kept
    assert [event["annotator"] for event in log_of(store)] == ["ada"]


def test_no_pair_is_held_for_ever_where_the_clock_was_set_back(project):
    store = project(2, lease_minutes=10)
    held = shown(store, "ada", 2, at=1e6)
    assert shown(store, "bob", 2, at=1e6 - 300) == []  # a little is no matter
    assert {one.pair_id for one in shown(store, "bob", 2, at=1e5)} == {one.pair_id for one in held}
    say(store, "ada", held[0], "tie", at=1e5 + 1)  # kept all the same
    assert [event["annotator"] for event in log_of(store)] == ["ada"]


def test_a_skip_gives_the_pair_to_another(project):
    store = project(1)
    [one] = shown(store, "ada")
    say(store, "ada", one, "skip")
    assert shown(store, "ada") == [] and len(shown(store, "bob")) == 1


def test_sides_are_random_and_recorded(project):
    store = project(60)
    pairs = shown(store, "ada", 60)
    say_all(store, "ada", pairs)
    log = log_of(store)
    assert all(event["choice"] == event["shown_left"] for event in log)
    assert 10 < sum(event["shown_left"] == "a" for event in log) < 50
    by_id = {event["pair_id"]: event for event in log}
    assert all(by_id[one.pair_id][by_id[one.pair_id]["shown_left"]] == one.left for one in pairs)


def test_known_pairs_are_interleaved_and_not_trained_on(project, tmp_path):
    store = project(8, gold=3, gold_every=4)
    for _ in range(20):
        for one in shown(store, "ada"):
            say(store, "ada", one, "left")
    with store.transaction() as connection:
        known = [store.pairs(connection)[event["pair_id"]].gold is not None for event in read_events(connection)]
    assert known == [False, False, False, True] * 2 + [False, False]
    found = report(store)
    assert found["gold"]["n"] == 2 and found["labels"] == found["wanted"] == 8
    assert export(store, tmp_path / "out")["preferences"] == 8
    assert sum("gold" in row for row in read_jsonl(tmp_path / "out" / "preferences.judgements.jsonl")) == 2


def read_events(connection):
    import sqlalchemy as sa

    from groundup.labelling.store import events

    return connection.execute(sa.select(events).order_by(events.c.number)).mappings().all()


def test_where_reward_models_disagree_comes_first(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("prompt,a,b,gap\n" + "".join(f"q{n},x{n},y{n},{(n * 7) % 5 - 2}\n" for n in range(5)))
    store = open_store(str(tmp_path / "labels.db"), make=True)
    assert import_files(store, [file], False, "gap", {"order": "disagreement"})["pairs"] == 5
    with store.transaction() as connection:
        pairs = store.pairs(connection)
    assert [pairs[one.pair_id].disagreement for one in shown(store, "ada", 5)] == [2, 2, 1, 1, 0]


ACT = st.tuples(st.integers(0, 2), st.sampled_from(["left", "right", "tie", "skip", "undo"]), st.booleans())


@given(st.lists(ACT, max_size=25))
@settings(max_examples=15)
def test_the_log_is_the_last_word_of_each_whatever_is_sent_again(tmp_path_factory, acts):
    store = open_store(str(tmp_path_factory.mktemp("p") / "labels.db"), make=True)
    with store.transaction() as connection:
        for n in range(3):
            store.add(connection, Pair(str(n), [{"role": "user", "content": "q"}], "x", "y"))
    pairs = {one.pair_id: one for one in shown(store, "ada", 3)}
    stacks = {name: [] for name in pairs}
    with store.transaction() as connection:
        for number, (which, choice, again) in enumerate(acts):
            stack, key, undoes = stacks[str(which)], f"key-{number}", None
            if choice == "undo":
                if not stack:
                    continue
                undoes = stack.pop()[0]
            else:
                stack.append((key, choice))
            judgement = Judgement(key, str(which), choice, undoes=undoes)
            assert record(connection, "ada", judgement, 0.0, 30)
            assert not again or not record(connection, "ada", judgement, 0.0, 30)
    sides = {event["pair_id"]: event["shown_left"] for event in log_of(store)}
    names = {name: {"left": left, "right": "b" if left == "a" else "a"} for name, left in sides.items()}
    expected = {name: names[name].get(stack[-1][1], stack[-1][1]) for name, stack in stacks.items() if stack}
    assert {event["pair_id"]: event["choice"] for event in log_of(store)} == expected


def test_what_cannot_be_stored_is_refused(project):
    store = project(2)
    one, other = shown(store, "ada", 2)
    say(store, "ada", one, "left", "key-1")
    for name, pair, choice, key, undoes in (
        ("ada", one, "right", "key-1", None), ("ada", other, "left", "key-1", None), ("bob", one, "left", "key-2", None),
        ("ada", one, "undo", "key-3", "none"), ("ada", other, "undo", "key-4", "key-1"),
    ):  # fmt: skip
        with pytest.raises(UserError):
            say(store, name, pair, choice, key, undoes=undoes)
    assert len(log_of(store)) == 1


def test_export_is_deterministic_and_read_back(project, tmp_path):
    store = project(4, overlap=3)
    votes = {"ada": ("a", "a", "tie", "a"), "bob": ("a", "b", "tie", "both_bad"), "cy": ("a", "a", "b", "skip")}
    for name, choices in votes.items():
        mine = {one.pair_id: one for one in shown(store, name, 4)}
        with store.transaction() as connection:
            wanted = list(store.pairs(connection).values())
        for pair, choice in reversed(list(zip(wanted, choices, strict=True))):
            one = mine[pair.pair_id]
            said = ("left" if one.left == pair.a else "right") if choice == "a" else choice
            if choice == "b":
                said = "left" if one.left == pair.b else "right"
            say(store, name, one, said, strength="slightly" if name == "cy" else "better", seconds=2.0)
    assert export(store, tmp_path / "1")["without_winner"] == 0
    export(store, tmp_path / "2")
    for name in ("preferences.jsonl", "preferences.judgements.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    found = read_preferences([tmp_path / "1" / "preferences.jsonl"])
    # By hand: (1 + 1 + 0.5) / 3, (1 - 1 + 0.5) / 3, -0.5 / 3 for b, (1 + 0) / 2.
    assert [row.margin for row in found.rows] == pytest.approx([2.5 / 3, 0.5 / 3, 0.5 / 3, 0.5]) and not found.dropped
    assert [row.chosen.content[:8] for row in found.rows] == ["answer a", "answer a", "answer b", "answer a"]
    log = read_jsonl(tmp_path / "1" / "preferences.judgements.jsonl")
    assert set(judgement("q", "x", "y", "x", "1", 0.0, "a")) <= set(log[0])  # the same events as the simulated annotator's


def test_judgements_made_elsewhere_are_brought_once(tmp_path):
    file = tmp_path / "log.jsonl"
    rows = [judgement("q", "x y", "z", "x", f"p{n}", 0.0, "a") for n in range(3)]
    rows += [{**row, "annotator": "ada", "choice": "tie"} for row in rows]
    rows += [{**rows[0], "choice": "c"}, {"prompt": "q", "a": "x"}, {**rows[0], "reason": "no text in Postgres: \0"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = open_store(str(tmp_path / "labels.db"), make=True)
    first = import_files(store, [file], False, "disagreement", {"overlap": 2})
    assert (first["pairs"], first["judgements"], sum(first["dropped"].values())) == (3, 6, 3)
    again = import_files(store, [file], False, "disagreement", {})
    assert (again["pairs"], again["judgements"], again["already_there"]) == (0, 0, 6)
    assert report(store)["cohen_kappa"] == {"ada, simulated": 0.0}
    assert shown(store, "bob", 5) == []


def test_half_a_character_in_a_reason_is_replaced(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps({**judgement("q", "x y", "z", "x", "p", 0.0, "a"), "reason": "half \ud800 a character"}))
    store = open_store(str(tmp_path / "labels.db"), make=True)
    assert import_files(store, [file], False, "disagreement", {})["judgements"] == 1
    assert [event["reason"] for event in log_of(store)] == ["half \ufffd a character"]


def test_preferences_are_pairs_on_random_sides_and_may_be_known(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{n}", "chosen": "good", "rejected": "bad"}) + "\n" for n in range(30)))
    store = open_store(str(tmp_path / "labels.db"), make=True)
    assert import_files(store, [file], True, "disagreement", {})["pairs"] == 30
    with store.transaction() as connection:
        pairs = store.pairs(connection).values()
    assert all({"a": pair.a, "b": pair.b}[pair.gold] == "good" for pair in pairs)
    assert 5 < sum(pair.gold == "a" for pair in pairs) < 25


def test_bad_projects_are_refused_in_a_line(tmp_path):
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at as one" * 20)
    for address, message in (
        (str(tmp_path / "none.db"), "no such project"), (str(tmp_path / "text.db"), "cannot be used"),
        (str(tmp_path), "no such project"), ("nosuch://host/db", "no address"), ("://", "no address"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_store(address)
    with pytest.raises(UserError) as found:
        open_store("postgresql+psycopg://ada:secret@127.0.0.1:1/none")
    assert "secret" not in str(found.value)


def test_a_log_that_is_written_can_be_brought_to_another_project(project, tmp_path):
    store = project(3, gold=1, gold_every=2)
    for one, choice in zip(shown(store, "ada", 4), ("left", "right", "tie", "skip"), strict=True):
        say(store, "ada", one, choice, strength="slightly", seconds=1.5, reason="so\nit is")
    export(store, tmp_path / "out")
    other = open_store(str(tmp_path / "other.db"), make=True)
    found = import_files(other, [tmp_path / "out" / "preferences.judgements.jsonl"], False, "disagreement", {})
    assert (found["pairs"], found["judgements"], found["dropped"]) == (4, 4, {})
    same = [[{**event, "at": 0} for event in sorted(log_of(one), key=lambda event: event["pair_id"])] for one in (store, other)]
    assert same[0] == same[1]


def imported(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    store = open_store(str(tmp_path / f"{name}.db"), make=True)
    return store, import_files(store, [tmp_path / name], False, "disagreement", {})


def test_judgements_of_several_people_may_have_the_id_of_their_item(tmp_path):
    rows = [{"id": 7, "prompt": "q", "a": "x", "b": "y", "choice": "a", "annotator": name} for name in ("ada", "bob", "bob")]
    store, counts = imported(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert (counts["pairs"], counts["judgements"], counts["dropped"]) == (1, 2, {"duplicate id": 1})
    assert report(store)["raw_agreement"] == 1


def test_pairs_that_nobody_has_judged_yet_have_an_empty_choice_in_csv(tmp_path):
    _, counts = imported(tmp_path, "rows.csv", "prompt,a,b,choice,annotator\nq,x,y,a,ada\np,x,y,,\n")
    assert (counts["pairs"], counts["judgements"], counts["dropped"]) == (2, 1, {})


def test_a_name_is_one_annotator_however_it_was_typed(tmp_path):
    rows = [
        {"prompt": "q", "a": "x", "b": "y", "choice": choice, "annotator": name}
        for choice, name in (("a", " Andr\u00e9  B"), ("b", "Andre\u0301 B "), ("tie", "  "))
    ]
    store, counts = imported(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert [(event["annotator"], event["choice"]) for event in log_of(store)] == [("Andr\u00e9 B", "b")]
    assert list(counts["dropped"].values()) == [1]


def test_an_undo_of_what_is_undone_leaves_a_later_judgement(project):
    store = project(1)
    [pair] = shown(store, "ada")
    say(store, "ada", pair, "left", key="first")
    say(store, "ada", pair, "undo", key="undo", undoes="first")
    assert shown(store, "ada") == [pair]
    say(store, "ada", pair, "skip", key="second")
    say(store, "ada", pair, "tie", key="third")
    say(store, "ada", pair, "undo", key="again", undoes="first")  # of another tab, or sent late
    with store.transaction() as connection:
        assert progress(store, connection, "ada")["labels"] == 1
    assert len(log_of(store)) == 1
    assert not shown(store, "ada") and not shown(store, "bob")
    say(store, "ada", pair, "undo", key="last", undoes="third")
    assert [event["choice"] for event in log_of(store)] == ["skip"] and not shown(store, "ada") and shown(store, "bob")

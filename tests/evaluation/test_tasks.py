"""Task files: what they make of rows, and what is refused in one line or counted and passed over."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.evaluation.row_templates import MAX_CHARACTERS
from groundup.evaluation.tasks import distinct, load, open_task, read_settings, shipped
from groundup.evaluation.templates import unbracketed

CHOICES = """kind = "choices"
files = ["rows.jsonl"]
prompt = "Q: {{ q }}\\nA:"
choices = "options"
answer = "key"
"""
GOOD = {"q": "which?", "options": ["this", "that"], "key": 1}


@pytest.fixture
def task(tmp_path):
    """Write a task and its rows; `text` is added to the file of the task."""

    def make(rows, text=CHOICES, **files):
        (tmp_path / "own.toml").write_text(text, encoding="utf-8")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for name, some in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        return open_task(str(tmp_path / "own.toml"))

    return make


def test_a_task_of_ones_own(task):
    [example] = load(task([GOOD])).rows
    assert (example.prompt, example.texts, example.answer, example.listed) == ("Q: which?\nA:", ("this", "that"), 1, "")


@pytest.mark.parametrize("key", [1, "1", " 1", "B", "b", "that", "that ", 1.0, "1.0"])
def test_answer_keys(task, key):
    assert load(task([GOOD | {"key": key}])).rows[0].answer == 1


# The key of a text is the place of another one too: numbers as answers, blood groups.
TWO_WAYS = [
    (["2", "4", "6", "8"], "2", 0),
    (["1", "2", "3", "4"], "2", 1),
    (["O", "A", "B", "AB"], "A", 1),
    (["O", "A", "B", "AB"], "O", 0),
    (["o", "a"], "a", 1),
]


@pytest.mark.parametrize(("options", "key", "right"), TWO_WAYS)
def test_a_key_that_can_be_read_in_two_ways_is_not_guessed_at(task, options, key, right):
    row = GOOD | {"options": options, "key": key}
    found = load(task([GOOD, row]))
    if len(found.rows) == 2:
        assert found.rows[1].answer == right  # one of the two readings is none: of O, as a letter, or of both the same
    else:
        assert "index and another's text" in str(found.refused)
    [one] = load(task([row], CHOICES.replace('"key"', '"options.index(key)"'))).rows
    assert one.answer == right


@pytest.mark.parametrize("keys", [(1, 2, 3), ("1", "2", "3"), (2.0, 3.0, 1.0), ("A", "3", "B"), (3,)])
def test_keys_that_count_from_1_are_refused(task, keys):
    rows = [GOOD | {"options": ["x", "y", "z"], "key": key} for key in keys]
    with pytest.raises(UserError, match=r'count from 1, as rows.jsonl: row .*write answer = "key \| int - 1"') as error:
        load(task(rows), limit=1)
    assert len(str(error.value)) < 300
    assert load(task([*rows, GOOD | {"key": 0}])).refused.total() == 1  # from 0, and one is wrong
    if "A" not in keys:
        with pytest.raises(UserError, match=r'count from 1.*write answer = "key \| int - 1"'):
            load(task(rows, CHOICES.replace('"key"', '"key | int"')))
        found = load(task(rows, CHOICES.replace('"key"', '"key | int - 1"')))
        assert [one.answer for one in found.rows] == [int(key) - 1 for key in keys]


def test_the_right_answer_twice_is_said(task):
    found = load(task([GOOD, GOOD | {"options": ["same", "same", "other"]}, GOOD | {"options": ["other", "this", "other"]}]))
    assert len(found.rows) == 3 and "row 2" in str(found.answer_twice) and found.answer_twice.total() == 1
    pairs = 'kind = "pairs"\nfiles = ["rows.jsonl"]\nalternatives = "[q, a]"\n'
    assert load(task([{"q": "x", "a": "x"}, {"q": "x", "a": "y"}], pairs)).answer_twice.total() == 1


TWO_SHOTS = CHOICES + "[few_shot]\ncount = 2\n"
POOL = [GOOD | {"q": f"{n}?", "key": n % 2} for n in range(5)]


@pytest.mark.parametrize("choose", ["first", "random"])
@pytest.mark.parametrize("files", ['files = ["pool.jsonl"]\n', 'files = ["rows.jsonl"]\n', ""])
def test_no_question_is_shown_its_own_answer(task, choose, files):
    asked = [row | {"id": n} for n, row in enumerate(POOL + POOL)]  # twice, and otherwise marked than in the pool
    found = load(task(asked, f'{TWO_SHOTS}choose = "{choose}"\n{files}', pool=POOL))
    assert len(found.rows) == 10
    for one, row in zip(found.rows, asked, strict=True):
        *shown, last = re.findall(r"Q: (.*)\n", one.prompt)
        assert last == row["q"] and len(shown) == 2 and last not in shown


def test_a_pool_of_nothing_but_the_question(task):
    with pytest.raises(UserError, match="too few few-shot examples that are not the question itself"):
        load(task([GOOD] * 4, TWO_SHOTS))
    found = load(task([*POOL[:1] * 3, POOL[1]], TWO_SHOTS))
    assert [one.number for one in found.rows] == [3] and "too few few-shot" in str(found.refused)


def test_what_is_wrong_with_a_task_is_said_before_a_model_is_asked(task):
    generation = 'kind = "generation"\nfiles = ["rows.jsonl"]\nprompt = "{{ q }}"\ntarget = "q"\nextract = "("\n'
    with pytest.raises(UserError, match=r"own.toml: extract: '\(' is not a regular expression"):
        task([GOOD], generation)
    with pytest.raises(UserError, match=r"answer: an expression.*without \{\{ and \}\}"):
        load(task([GOOD], CHOICES.replace('"key"', '"{{ key }}"')))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": 3}, "out of range"),
        ({"key": -1}, "out of range"),
        ({"key": "E"}, "out of range"),
        ({"key": "neither"}, "answer key"),
        ({"key": True}, "answer key"),
        ({"key": None}, "answer key"),
        ({"options": ["this", ""]}, "empty"),
        ({"options": ["this", " \n"]}, "empty"),
        ({"options": ["this", None]}, "no text"),
        ({"options": ["this"]}, "fewer than 2"),
        ({"options": "this"}, "no list"),
        ({"options": [str(n) for n in range(40)]}, "more than 26"),
        ({"q": None}, "nothing where a text is wanted"),
        ({"q": ["which?"]}, "list where a text is wanted"),
        ({"q": {"text": "which?"}}, "dict where a text is wanted"),
        ({"q": "x" * 10_000_000}, "longer than"),
        ({"options": ["this", "x" * 10_000_000]}, "longer than"),
    ],
)
def test_a_bad_row_among_good_ones_is_counted(task, change, reason):
    found = load(task([GOOD, GOOD | change, GOOD]))
    assert [example.number for example in found.rows] == [0, 2]
    assert sum(found.refused.values()) == 1 and reason in str(found.refused) and "row 2" in found.refused.first


@pytest.mark.parametrize("value", [None, ["which?"], {"text": "which?"}])
def test_what_is_joined_is_text_too(task, value):
    found = load(task([GOOD, GOOD | {"q": value}], CHOICES.replace("Q: {{ q }}", "{{ 'Q: ' ~ q }}")))
    assert len(found.rows) == 1 and found.rows[0].prompt == "Q: which?\nA:" and "where a text is wanted" in str(found.refused)


@pytest.mark.parametrize("key", [None, "2", 10**25, float("inf")])
def test_a_row_that_an_expression_cannot_compute_is_counted(task, key):
    found = load(task([GOOD, GOOD | {"key": key}, GOOD], CHOICES.replace('"key"', '"key - 1"')))
    assert [example.number for example in found.rows] == [0, 2] and "row 2" in found.refused.first
    with pytest.raises(UserError, match=r"no example for own: .*- between|beyond 2\^63"):
        load(task([GOOD | {"key": key}], CHOICES.replace('"key"', '"key - 1"')))


@pytest.mark.parametrize("template", ["{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}", "{{ q.replace('', 'x') * 9 }}"])
def test_no_text_is_multiplied(task, template, within_a_minute):
    with pytest.raises(UserError, match=r"no example for own: .*\* between str and int: 50"):
        load(task([GOOD | {"q": "x" * 1000}] * 50, CHOICES.replace('"Q: {{ q }}\\nA:"', f'"""{template}"""')))


@pytest.mark.parametrize("key", [None, "", "n/a", float("nan"), ["1"]])
def test_what_is_no_number_is_no_key_of_the_first_choice(task, key):
    """jinja's `int` makes 0 of it."""
    found = load(task([GOOD, GOOD | {"key": key}], CHOICES.replace('"key"', '"key | int"')))
    assert [example.number for example in found.rows] == [0] and "is no number" in str(found.refused)
    assert load(task([GOOD | {"key": key}], CHOICES.replace('"key"', '"key | int(0)"'))).rows[0].answer == 0


def test_a_listed_prompt_that_is_empty_for_some(task):
    """The conventions that need letters would have no figure for it."""
    text = CHOICES + 'listed = "{% if listed %}{{ q }}{% endif %}"\n'
    found = load(task([GOOD | {"listed": True}, GOOD | {"listed": False}], text))
    assert [one.number for one in found.rows] == [0]
    assert dict(found.refused) == {"a prompt that lists the answers and is empty": 1}


def test_an_object_of_choices(task):
    """Its keys, which are what `list` makes of it, are no answers."""
    options = {"A": "this", "B": "that"}
    with pytest.raises(UserError, match=r"put .values\(\) \| list behind"):
        load(task([GOOD | {"options": options}]))
    text = CHOICES.replace('"options"', '"options.values() | list"')
    assert load(task([GOOD | {"options": options, "key": "B"}], text)).rows[0].texts == ("this", "that")


def test_a_missing_column(task):
    short = {name: value for name, value in GOOD.items() if name != "q"}
    assert "'q' is undefined" in str(load(task([GOOD, short])).refused)
    with pytest.raises(UserError, match=r"no example.*'q' is undefined.*columns options, key") as error:
        load(task([short, short]))
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["q", "options", "key"])
def test_each_missing_column_is_named(task, name):
    row = {column: value for column, value in GOOD.items() if column != name}
    with pytest.raises(UserError, match=f"'{name}' is undefined"):
        load(task([row]))


def test_a_missing_column_in_a_list_is_named(task):
    with pytest.raises(UserError, match="'D' is undefined"):
        load(task([{"q": "?", "A": "x", "B": "y", "key": 0}], CHOICES.replace('"options"', '"[A, B, D]"')))


def test_plain_text_and_archives(tmp_path):
    (tmp_path / "notes.txt").write_text("a rock: [x]\nand more\n")
    (tmp_path / "pages.warc").write_text("WARC/1.0\r\n\r\n")
    assert load(open_task("perplexity", tmp_path / "notes.txt")).rows[0].texts == ("a rock: [x]\nand more\n",)
    with pytest.raises(UserError, match="a web archive"):
        load(open_task("perplexity", tmp_path / "pages.warc"))


def test_no_rows(task):
    with pytest.raises(UserError, match="no example"):
        load(task([]))


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{{ q.replace('', 'xx') }}{% endfor %}",
        "{% set n = namespace(t='x') %}{% for a in range(90) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    ],
)
def test_a_template_that_loops_ends(task, template, within_a_minute):
    text = CHOICES.replace('"Q: {{ q }}\\nA:"', f'"""{template}"""')
    with pytest.raises(UserError, match=r"own.toml: prompt: the template ended with") as error:
        load(task([GOOD | {"q": "x" * 1000}] * 50, text))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("source", ["{{ q", "{% import 'os' %}", "{{ q.__class__.__mro__ }}", "{{ q | pprint }}", "{{ cycler }}"])
def test_what_the_sandbox_has_not(task, source):
    with pytest.raises(UserError):
        load(task([GOOD], CHOICES.replace("Q: {{ q }}\\nA:", source)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind =", "not TOML"),
        ('kind = "sonnets"\nfiles = ["x"]', "kind"),
        (CHOICES + "colour = 1", "colour"),
        (CHOICES.replace('choices = "options"\n', ""), "needs choices"),
        (CHOICES.replace('["rows.jsonl"]', "[]"), "files is empty"),
        (CHOICES.replace("rows.jsonl", "gone.jsonl"), "no such file"),
        (CHOICES.replace("rows.jsonl", "../rows.jsonl"), "no name below"),
        (CHOICES.replace("rows.jsonl", "/etc/hosts"), "no name below"),
        (CHOICES + '[few_shot]\ncount = 1\nfiles = ["../x.jsonl"]', "no name below"),
        (CHOICES + "[few_shot]\ncount = -1", "few_shot.count"),
        ('kind = "pairs"\nfiles = ["rows.jsonl"]\nalternatives = "options"\n[few_shot]\ncount = 2', "takes no few-shot"),
        ('kind = "perplexity"\nfiles = ["rows.jsonl"]\ntext = "q"\n[by]\nq = "{{ q }}"', "no figures of parts"),
        ("#" * 70_000, "at most"),
        ("\x00", "not TOML"),
    ],
)
def test_bad_task_files(task, text, said):
    with pytest.raises(UserError, match=said) as error:
        task([GOOD], text)
    assert "\n" not in str(error.value)


def test_names():
    with pytest.raises(UserError, match="neither a file nor a shipped task"):
        open_task("mmmlu")
    with pytest.raises(UserError, match="give the folder of the data"):
        open_task("mmlu")


def test_all_shipped_tasks_are_whole():
    assert {"mmlu", "arc_easy", "arc_challenge", "piqa", "hellaswag", "winogrande", "copa", "lambada", "blimp"} <= {*shipped()}
    for path in shipped().values():
        assert read_settings(path).title


def test_the_task_of_the_documentation(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    [row] = re.findall(r'`(\{"question".*?\})`', page, re.DOTALL)
    (tmp_path / "rivers.toml").write_text(text)
    (tmp_path / "rivers.jsonl").write_text(" ".join(row.split()))
    [example] = load(open_task(str(tmp_path / "rivers.toml"))).rows
    assert len(text.splitlines()) == 5 and example.prompt.endswith("Rhine end?\nAnswer:") and example.texts[0] == "North Sea"
    for name in shipped():
        assert f"`{name}`" in page


# --- few-shot examples --------------------------------------------------------------------------------------------

SHOTS = CHOICES + """group = "{{ topic }}"
listed = "{{ q }} A. {{ options[0] }} B. {{ options[1] }}"
description = "About {{ topic }}. "
[few_shot]
count = 2
"""


def test_first_examples_of_the_group(task):
    pool = [{"q": f"q{n}", "options": ["x", "y"], "key": n % 2, "topic": "ab"[n // 4]} for n in range(8)]
    asked = GOOD | {"topic": "b"}
    [example] = load(task([asked], SHOTS + 'files = ["pool.jsonl"]', pool=pool)).rows
    assert example.prompt == "About b. Q: q4\nA: x\n\nQ: q5\nA: y\n\nQ: which?\nA:"
    assert example.listed == "About b. q4 A. x B. y A\n\nq5 A. x B. y B\n\nwhich? A. this B. that"


@pytest.mark.parametrize("choose", ["first", "random"])
def test_an_example_is_never_its_own(task, choose):
    rows = [{"q": f"q{n}", "options": ["x", "y"], "key": 0, "topic": "a"} for n in range(5)]
    found = load(task(rows, SHOTS + f'choose = "{choose}"')).rows
    for n, example in enumerate(found):
        assert example.prompt.count(f"Q: q{n}\n") == 1 and example.prompt.count("Q:") == 3
    assert (len({example.prompt[:30] for example in found}) > 3) == (choose == "random")


def test_random_examples_are_those_of_lm_eval(task):
    from random import Random

    pool = [{"q": f"q{n}", "options": ["x", "y"], "key": 0, "topic": "a"} for n in range(30)]
    text = SHOTS + 'files = ["pool.jsonl"]\nchoose = "random"'
    found = load(task([GOOD | {"topic": "a"}] * 3, text, pool=pool)).rows
    generator = Random(1234)
    for example in found:
        for row in generator.sample(pool, 2):
            assert f"Q: {row['q']}\n" in example.prompt


def test_too_few_examples(task):
    with pytest.raises(UserError, match="1 few-shot examples of a, where 2 are needed"):
        load(task([GOOD | {"topic": "a"}], SHOTS + 'files = ["pool.jsonl"]', pool=[GOOD | {"topic": "a"}]))


def test_a_limit_is_spread_over_the_file(task):
    found = load(task([GOOD | {"q": str(n)} for n in range(100)]), limit=4)
    assert [example.number for example in found.rows] == [0, 25, 50, 75]
    assert len(load(task([GOOD]), limit=4).rows) == 1


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    """As benchmarks have them: `test/law.jsonl` and `dev/law.jsonl`."""
    for name in ("test", "dev"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "law.jsonl").write_text(json.dumps(GOOD | {"q": name}))
    text = CHOICES.replace("rows.jsonl", "test/law.jsonl") + '[few_shot]\ncount = 1\nfiles = ["dev/law.jsonl"]\n'
    (tmp_path / "own.toml").write_text(text)
    task = open_task(str(tmp_path / "own.toml"))
    before = task.digest()
    assert [*before["files"]] == ["test/law.jsonl", "dev/law.jsonl"]
    (tmp_path / "test" / "law.jsonl").write_text(json.dumps(GOOD | {"key": 0}))
    assert task.digest() != before
    assert [*distinct([Path("a/b/x"), Path("c/b/x"), Path("x")])] == ["a/b/x", "c/b/x", "x"]


# --- formats ------------------------------------------------------------------------------------------------------


def test_formats_give_the_same_examples(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"q": "a, b?", "A": "x", "B": "y", "key": "B"}, {"q": "c", "A": "z", "B": "é\nw", "key": "A"}]
    text = CHOICES.replace('"options"', '"[A, B]"')
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "rows.csv").write_text('q,A,B,key\n"a, b?",x,y,B\nc,z,"é\nw",A\n')
    (tmp_path / "rows.tsv").write_text('q\tA\tB\tkey\na, b?\tx\ty\tB\nc\tz\t"é\nw"\tA\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = [
        load(open_task(str(tmp_path / "own.toml"), tmp_path / name)).rows
        for name in ("rows.jsonl", "list.json", "rows.csv", "rows.tsv", "rows.parquet")
    ]
    assert len(found[0]) == 2 and all(some == found[0] for some in found)


def test_squad(tmp_path):
    passage = {"context": "It is red.", "qas": [
        {"id": "1", "question": "What is it?", "answers": [{"text": "red", "answer_start": 6}, {"text": "Red"}]},
        {"id": "2", "question": "Why?", "answers": []},
    ]}  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1", "data": [{"title": "T", "paragraphs": [passage, 3]}]}))
    found = load(open_task("xquad", tmp_path / "squad.json"))
    [example] = found.rows
    assert example.prompt == "Context: It is red.\n\nQuestion: What is it?\n\nAnswer:" and example.texts == ("red", "Red")
    assert sum(found.refused.values()) == 2  # no answer, no object


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
columns = ["query", "choices", "gold", "context_options", "continuation", "context", "sentence_good", "sentence_bad", "question"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*shipped()]), st.lists(st.dictionaries(st.sampled_from(columns), anything), max_size=4))
def test_any_rows_end_in_examples_or_one_line(tmp_path, name, rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        found = load(open_task(name, tmp_path / "rows.jsonl", few_shot=0 if "few_shot" in shipped()[name].read_text() else None))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.rows and len(found.rows) + sum(found.refused.values()) >= len(rows)


@given(st.text(alphabet="[]a \n", max_size=30))
def test_brackets(text):
    assert unbracketed(text) == re.sub("\\[.*?\\]", "", text)


def test_brackets_take_linear_time(growth):
    assert growth(lambda size: unbracketed("[" * size), 100_000) < 8 and MAX_CHARACTERS < 10_000_000

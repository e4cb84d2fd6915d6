import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data import docstring_questions

SOURCE = '''
"""Tools that copy files.

More about them.
"""
import os

def copy(src, dst, /, *, follow=True, **options):
    """copy(src, dst) -> str

    Copy the file at `src' to ``dst`` and return the *new* path.  See
    :func:`os.path.join` for names.

    >>> copy(1, 2)
    """

async def fetch():
    """Fetch the next block of data."""

def bare(x):
    pass

def _hidden(x):
    """Nobody asks about this one here."""

try:
    def tried(a, b=(1, 2), *args): "Try whether a file could be copied."
except ImportError:
    def tried(z): "A second definition that comes too late."

class Copier(dict, metaclass=type):
    """Copies files:

    - quickly
    """
    def __init__(self, root, depth=-1):
        """Remember where to begin."""
    def run(self, path, /, times=1):
        """Run once for every path. Then stop.

        Nothing else.
        """
    @staticmethod
    def plan(path, when="now"):
        """Plan a run without making it."""
    @classmethod
    def default(cls):
        """Return the copier that everybody uses."""
    @property
    def size(self):
        """The size of all files together."""
    def nothing(*args):
        """Take whatever is given to it."""
'''


@pytest.fixture(scope="module")
def objects():
    return {one.name: one for one in docstring_questions.documented_objects(SOURCE, "tools.files")}


@pytest.fixture(scope="module")
def library():
    folder = Path(shutil.__file__).parent
    names = ["shutil.py", "posixpath.py", "ntpath.py", "argparse.py", "mailbox.py", "threading.py", "email/message.py"]
    return [(docstring_questions.STDLIB + name, (folder / name).read_text(encoding="utf-8")) for name in names]


def test_objects_are_public_documented_and_seen_as_a_caller_sees_them(objects):
    assert [
        (one.name.removeprefix("tools.files"), one.kind, one.signature, one.parameters) for one in objects.values()
    ] == [
        ("", "module", None, ()),
        (".copy", "function", "(src, dst, /, *, follow=True, **options)", ("src", "dst", "follow", "**options")),
        (".fetch", "function", "()", ()),
        (".tried", "function", "(a, b=(1, 2), *args)", ("a", "b", "*args")),
        (".Copier", "class", "(root, depth=-1)", ("root", "depth")),
        (".Copier.run", "method", "(path, /, times=1)", ("path", "times")),
        (".Copier.plan", "method", "(path, when='now')", ("path", "when")),
        (".Copier.default", "method", "()", ()),
        (".Copier.nothing", "method", "(*args)", ("*args",)),
    ]
    assert objects["tools.files.Copier"].definition == "class Copier(dict, metaclass=type):"
    assert objects["tools.files.Copier.run"].definition == "def run(self, path, /, times=1):"
    assert objects["tools.files.fetch"].definition == "async def fetch():"


def test_signatures_agree_with_inspect(library):
    """Parameter names as `inspect.signature` finds them on the imported objects."""
    checked = 0
    for one in docstring_questions.documented(library):
        if one.module not in ("shutil", "argparse", "mailbox", "threading") or one.signature is None:
            continue
        value = sys.modules.get(one.module) or __import__(one.module)
        for part in one.name.removeprefix(one.module + ".").split("."):
            value = getattr(value, part)
        if value.__module__ != one.module:  # C, or pytest's hook, has taken its place
            continue
        found = list(inspect.signature(value).parameters.values())
        bound = one.kind == "method" and not isinstance(value, type) and not inspect.ismethod(value)
        found = found[1:] if bound and found and found[0].name == "self" else found
        star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        assert one.parameters == tuple(star.get(item.kind, "") + item.name for item in found), one.name
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("source", ["def f(:", "x = '\0'", "(" * 5000])
def test_source_that_does_not_parse_has_no_objects(source):
    assert docstring_questions.documented_objects(source, "broken") == []


def test_a_lone_surrogate_in_a_docstring_can_be_written():
    (one,) = docstring_questions.documented_objects('def f():\n    "Return \\ud800 as it is given."', "m")
    one.docstring.encode("utf-8")


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("file:///stdlib/os.py", "os"),
        ("file:///stdlib/email/mime/text.py", "email.mime.text"),
        ("file:///stdlib/email/__init__.py", "email"),
        ("file:///stdlib/_pyio.py", ""),
        ("file:///stdlib/test/test_os.py", ""),
        ("file:///stdlib/config-3.11/x.py", ""),
        ("https://docs.python.org/3/library/os.html", ""),
    ],
)
def test_module_name(url, module):
    assert docstring_questions.module_name(url) == module


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return it,\nas it is.\n\nMore.", "Return it, as it is."),
        ("f(a, b=(1, 2)) -> int\n\nReturn the number of parts.", "Return the number of parts."),
        ("return the number of parts", "Return the number of parts."),
        ("Use ``x``, :class:`~os.PathLike` or `name'.", "Use `x`, `os.PathLike` or `name`."),
        ("Return *path* with *args and **kwargs kept.", "Return path with *args and **kwargs kept."),
        ("Wait e.g. Forever. Or until it ends.", "Wait e.g. Forever. Or until it ends."),
        ("These are the known options:\n  - one\n  - two", ""),
        ("Parse it to a tree. The options are:\n- one", "Parse it to a tree."),
        ("See base class.", ""),
        (">>> f(1)\n2", ""),
        ("Copyright 2001 by the authors of it.", ""),
        ("-----------------\nTitle of the module here", ""),
        ("", ""),
        (" ".join(["word"] * 61) + ".", ""),
        ("One two three four. " + " ".join(["Word"] * 57) + ".", "One two three four."),
    ],
)
def test_description(docstring, expected):
    assert docstring_questions.description(docstring) == expected


@given(st.text())
def test_a_description_is_empty_or_one_line_of_whole_sentences(docstring):
    text = docstring_questions.description(docstring)
    words = text.split()
    assert text == "" or (docstring_questions.MIN_WORDS <= len(words) <= docstring_questions.MAX_WORDS and text[-1] in ".!?")
    assert "\n" not in text


def test_questions_and_answers_read_as_expected(objects):
    rows = {
        row["kind"]: [one["content"] for one in row["messages"]]
        for row in docstring_questions.examples(objects["tools.files.copy"])
    }
    assert rows["description"][0] in [
        one.format(objects["tools.files.copy"]) for one in docstring_questions._DESCRIPTION["function"]
    ]
    answer = "Copy the file at `src` to `dst` and return the new path."
    assert rows["description"][1] == answer + " See `os.path.join` for names."
    assert rows["name"] == [f"Which function of `tools.files` does this? {answer}", "`tools.files.copy`."]
    assert "`tools.files.copy(src, dst, /, *, follow=True, **options)`" in rows["parameters"][0]
    assert rows["parameters"][1] == (
        "`tools.files.copy` takes four parameters: `src`, `dst`, `follow` and `**options`."
    )
    assert rows["import"][1] == "It is defined in the module `tools.files`: `from tools.files import copy`."
    assert "`def copy(src, dst, /, *, follow=True, **options):`" in rows["kind"][0]
    assert rows["kind"][1] == "`tools.files.copy` is a function."

    method = {
        row["kind"]: [one["content"] for one in row["messages"]]
        for row in docstring_questions.examples(objects["tools.files.Copier.run"])
    }
    assert set(method) == {"description", "name", "parameters", "kind"}
    assert method["name"][0] == "Which method of `tools.files.Copier` does this? Run once for every path."
    assert method["description"][1] == "Run once for every path. Then stop."
    none = {row["kind"]: row["messages"][1]["content"] for row in docstring_questions.examples(objects["tools.files.fetch"])}
    assert none["parameters"] == "`tools.files.fetch` takes no parameters."


def test_objects_with_one_first_sentence_are_on_one_side(library):
    items = docstring_questions.documented(library)
    sides = docstring_questions.split(items, 0.3, 0.3, seed=1)
    assert set(sides) == {one.name for one in items}
    by_sentence: dict[str, set[str]] = {}
    for one in items:
        if sentence := docstring_questions.first_sentence(one.docstring):
            by_sentence.setdefault(sentence.lower(), set()).add(sides[one.name])
    assert all(len(found) == 1 for found in by_sentence.values())
    assert len(by_sentence) < len(items)  # there were such objects
    shares = Counter(sides.values())
    assert shares["train"] / len(items) == pytest.approx(0.4, abs=0.1)
    assert shares["held_out"] / len(items) == pytest.approx(0.3, abs=0.1)
    assert docstring_questions.split(items, 0.3, 0.3, seed=2) != sides


def test_build_from_the_library(library):
    rows = docstring_questions.build(library, max_objects=400, seed=0)
    everything = [row for side in rows.values() for row in side]
    assert len({row["object"] for row in everything}) <= 400
    objects = {side: {row["object"] for row in some} for side, some in rows.items()}
    assert not objects["train"] & objects["preference"] and not objects["train"] & objects["held_out"]
    assert not objects["preference"] & objects["held_out"]
    asked = [row["messages"][0]["content"] for row in everything]
    assert len(set(asked)) == len(asked)
    described = [row["messages"][1]["content"] for row in everything if row["kind"] == "description"]
    assert len(set(described)) == len(described)
    for side, some in rows.items():
        kinds = Counter(row["kind"] for row in some)
        assert set(kinds) == {"description", "name", "parameters", "import", "kind"}, side
        assert max(kinds.values()) == kinds["description"]
        for row in some:
            assert [one["role"] for one in row["messages"]] == ["user", "assistant"]
            assert row["messages"][1]["content"][-1] in ".!?"
            assert row.get("reference") == (None if side == "train" else row["messages"][1]["content"])
    imports = [row for row in everything if row["kind"] == "import"]
    for row in imports:  # the code in an answer is code
        ast.parse(row["messages"][1]["content"].rstrip(".").rpartition(": ")[2].strip("`"))


def test_too_few_objects_for_all_sides_are_refused(library):
    with pytest.raises(UserError, match=r"no questions for .*\b(preference|held_out) in documented Python"):
        docstring_questions.build(library, max_objects=1, seed=0)


def test_build_does_not_depend_on_the_order_of_documents_or_on_the_hash_seed(library):
    ours = docstring_questions.build(library, 100, seed=3)
    assert docstring_questions.build(library[::-1], 100, seed=3) == ours
    assert docstring_questions.build(library, 100, seed=4) != ours
    program = textwrap.dedent(
        """
        import json, sys
        from groundup.data import docstring_questions
        print(json.dumps(docstring_questions.build([tuple(one) for one in json.load(sys.stdin)], 100, seed=3)))
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(library),
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == ours

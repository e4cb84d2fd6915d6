"""Whatever a recipe, --set or an argument holds: one line, exit code 2, no traceback, nothing that waits or allocates."""

import errno
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup import cli
from groundup.core.errors import UserError
from groundup.pipeline import recipe
from groundup.pipeline.recipe import Recipe

TINY = 'seed = 1\n[[pages.sources]]\nsource = "topics:"\ndomain = "reference"\n'
DIGITS = "9" * 5000


def refused(act):
    with pytest.raises(UserError) as caught:
        act()
    line = str(caught.value)
    assert len(line) <= 300 + len(os.sep) * 100 and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TINY + f"[x]\ny = {'[' * 20_000}{']' * 20_000}", "nested too deep"),
        (TINY.replace("1", DIGITS), "not valid TOML"),
        (TINY.replace("1", "0x" + "f" * 5000), "seed = <int>"),
        (TINY + f"[{'.'.join(['a'] * 20_000)}]\nx = 1", "unknown key a"),
        (TINY.replace("seed", "s" * 5000), "unknown key"),
        (TINY + f'[base]\ndepth = "{"x" * 5000}"', "base.depth"),
        ("\xff\xfe", "not valid TOML"),
    ],
)
def test_a_recipe_without_bound_is_refused_in_a_line(tmp_path, content, said):
    path = tmp_path / "r.toml"
    path.write_bytes(content.encode("latin-1"))
    assert said in refused(lambda: recipe.load(path))


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(TINY, encoding="utf-8-sig")
    assert recipe.load(path).seed == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on Windows")
def test_a_named_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "r.toml")
    assert "not a plain file" in refused(lambda: recipe.load(tmp_path / "r.toml"))


@given(
    st.sampled_from(["seed", "base.depth", "a.b", "x" * 400, ".".join("a" * 3000)]),
    st.one_of(
        st.integers(1, 30_000).map(lambda depth: "[" * depth),
        st.integers(4301, 9000).map(lambda length: "9" * length),
        st.integers(3000, 9000).map(lambda length: "0x" + "f" * length),
        st.sampled_from(["nan", "-1", "1e999", "{a=1}", "'''", ""]),
        st.text(max_size=20),
    ),
)
def test_a_setting_is_taken_or_refused_in_a_line(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "set.toml"
    path.write_text(TINY, encoding="utf-8")
    try:
        found = recipe.load(path, [f"{key}={value}"])
    except UserError:
        refused(lambda: recipe.load(path, [f"{key}={value}"]))
    else:
        assert tomllib.loads(f"value = {value}")["value"] == {"seed": found.seed, "base.depth": found.base.depth}[key]


def numbers(model, path=()):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, recipe.Section):
            yield from numbers(field.annotation, (*path, name))
        elif field.annotation in (int, float, float | None):
            yield (*path, name), field.annotation


@pytest.mark.parametrize(("path", "kind"), [*numbers(Recipe)])
def test_every_number_of_a_recipe_has_bounds(path, kind):
    least = 10**30 if kind is int else 1e30
    for value in (least, -least):
        content = {"name": "x", "pages": {"sources": [{"source": "topics:", "domain": "a"}]}}
        inner = content
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
        assert ".".join(path) in refused(lambda content=content: recipe.resolve(content, [], "here"))


def ended(monkeypatch, capsys, arguments, act=None):
    """What the command line says when `act` takes the place of the commands."""
    monkeypatch.setattr(sys, "argv", ["groundup", *arguments])
    if act:
        monkeypatch.setattr(cli, "app", act)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def raising(error):
    def act(**_):
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "too long"),
        (OSError("4096 requested and 0 written"), "no space left"),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"), "no space left"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "f"), "f: Transport endpoint"),
        (OSError(), "disk: OSError"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
        (ValueError("embedded null byte"), "embedded null byte"),
        (ValueError("x" * 5000), "cannot use"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (MemoryError(), "no memory left"),
    ],
)
def test_what_no_chapter_foresaw_ends_in_a_line(monkeypatch, capsys, error, said):
    line = ended(monkeypatch, capsys, [], raising(error))
    assert said in line and len(line.splitlines()) == 1 and len(line) <= 300


def test_numpy_on_a_full_disk(monkeypatch, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")

    def act(**_):
        with Path("/dev/full").open("wb", buffering=0) as file:
            np.zeros(1 << 20).tofile(file)

    assert "no space left" in ended(monkeypatch, capsys, [], act)


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "x" * 5000],
        ["tensorboard", "x" * 5000],
        ["corpus", "tune", "x" * 5000],
        ["run", "x" * 5000],
        ["chat", ".", "--seed", DIGITS],
        ["chat", ".", "--seed", "-1"],
        ["chat", ".", "--temperature", "nan"],
        ["chat", ".", "--temperature", "inf"],
        ["chat", ".", "--max-tokens", "1" * 30],
        ["tokenizer", "sweep", ".", "--out", "x", "--depth", "1000000"],
        ["tokenizer", "train", ".", "--out", "x", "--memory-mb", "1" * 30],
        ["corpus", "--from", "topics:", "--out", "x" * 5000, "--dry-run"],
    ],
)
def test_an_argument_without_bound_is_refused(monkeypatch, capsys, arguments):
    ended(monkeypatch, capsys, arguments)

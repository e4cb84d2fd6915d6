"""The benchmarks, which no test runs, ask each other for nothing that is not there."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def parsed(script):
    return ast.parse(script.read_text(encoding="utf-8"))


def names_of(script):
    names = set()
    for node in ast.walk(parsed(script)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((one.asname or one.name).partition(".")[0] for one in node.names)
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_benchmark_asks_of_another_is_there(script):
    known = {one.stem: one for one in SCRIPTS}
    modules = {}
    for node in ast.walk(parsed(script)):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            assert {one.name for one in node.names} <= names_of(known[node.module]), node.module
        elif isinstance(node, ast.Import):
            modules.update({one.asname or one.name: one.name for one in node.names if one.name in known})
    for node in ast.walk(parsed(script)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert node.attr in names_of(known[modules[node.value.id]]), f"{node.value.id}.{node.attr}"

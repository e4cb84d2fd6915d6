"""Chapters know no recipe and no command line."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import groundup
from groundup.pipeline.recipe import Recipe, config_of

SOURCES = Path(groundup.__file__).parent
PROGRAM = ("cli/", "pipeline/", "report/", "api.py")  # the report shows commands to try next
SECTIONS = {name: config_of(name) for name in Recipe.model_fields if config_of(name)}
KEYS = re.compile(rf"(?<![\w/.])({'|'.join(SECTIONS)})\.([a-z_]+)")
FLAG = re.compile(r"(?<![\w-])--[a-z]")
CONFIGS = sorted(path.relative_to(SOURCES).with_suffix("").as_posix().replace("/", ".") for path in SOURCES.glob("*/config.py"))


def test_no_message_of_a_chapter_names_a_key_of_the_recipe_or_a_flag():
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if name.startswith(PROGRAM) or name == "corpus/extract/train_extractor.py":  # a program of its own
            continue
        tree = ast.parse(path.read_text())
        documented = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
        docstrings = {id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                key = KEYS.search(node.value)
                if FLAG.search(node.value) or (key and key[2] in SECTIONS[key[1]].model_fields):
                    found.append(f"{name}:{node.lineno}: {node.value[:80]}")
    assert found == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_layers_are_told_as_they_are_checked(page):
    repository = SOURCES.parents[1]
    contracts = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    block = re.search(r"^```\n(cli\n.*?)^```", (repository / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    names = "|".join(re.split(r" \| |\n", "\n".join(contracts[0]["layers"])))
    told = [re.match(rf"(?:{names})(?: \| (?:{names}))*", line)[0] for line in block[1].splitlines()]
    assert told == contracts[0]["layers"]


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_are_read_without_torch(name):
    code = f"import sys; import groundup.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCES.parent)}, check=False).returncode == 0

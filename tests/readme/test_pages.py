"""The commands in docs/: those of the tour and the task pages run; all others name commands and options that exist."""

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from groundup.cli import app

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
RUN = [DOCS / "tour.md", *sorted((DOCS / "tasks").glob("*.md"))]
EVERY = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *RUN[1:]]
# Commands that other tests run.
ELSEWHERE = {
    "make setup": "what runs these tests has done it",
    "torchrun": "tests/training/test_parallel.py",
    "--engine ray": "tests/test_ray.py",
    "examples/first_file.py": "tests/examples",
}


def commands(page: Path) -> list[str]:
    """The lines of its blocks of shell commands, without remarks; a line that ends in a backslash has the next one's words."""
    found = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in found for line in block.replace("\\\n", "").splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_each_task_page_has_commands():
    assert len(RUN) >= 4
    assert all(map(commands, RUN))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_commands_of_a_page_run_one_after_another(page, tiny_run, environment, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(40):
        text = " ".join(f"Bee {number} of hive {word} flies to the flowers and brings some nectar home." for word in range(8))
        (notes / f"{number}.md").write_text(f"# Bee {number}\n\n{text}\n", encoding="utf-8")
    for command in commands(page):
        if any(part in command for part in ELSEWHERE):
            continue
        line = re.sub(r"^(\.venv/bin/)?groundup ", f"{sys.executable} -m groundup ", command)
        if re.search(r"groundup run (tiny|laptop)(?!.*--run)", line):
            line += " --run runs/tiny"
        if "--dry-run" not in line:  # which costs little: a recipe that the command does not fit is found
            line = re.sub(r"\brun laptop\b", "run tiny", line)
        line = re.sub(r"\bruns/(tiny|laptop)\b", str(tiny_run.folder), line)
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, input="What does `os.getcwd` do?\n",
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)


@pytest.fixture
def theirs(tmp_path):
    """A small Qwen3 that transformers wrote, under the name that the page gives it."""
    pytest.importorskip("transformers", reason="needs the `test` extra")
    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    from test_continuing import publish

    return publish(tmp_path / "Qwen3-0.6B")


def test_python_of_its_page_runs(tiny_run, theirs, environment, tmp_path):
    (tmp_path / "notes").mkdir()
    for number in range(40):
        (tmp_path / "notes" / f"{number}.md").write_text(f"Bee {number} flies to the flowers and brings some nectar home. " * 8)
    asked = [{"role": "user", "content": "What does a bee bring?"}]
    answer = {"messages": [*asked, {"role": "assistant", "content": "Nectar."}]}
    (tmp_path / "conversations.jsonl").write_text(json.dumps(answer) + "\n")
    (tmp_path / "preferences.jsonl").write_text('{"prompt": "What?", "chosen": "Nectar.", "rejected": "Bees."}\n')
    first, second = snippets(DOCS / "tasks" / "python.md")
    assert len(first.splitlines()) == 9
    for code in (first.replace("runs/laptop", str(tiny_run.folder)), second):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "'steps': 3" in done.stdout and sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "base", "dpo", "sft", "tokenizer",
    ]  # fmt: skip


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_what_a_page_imports_from_groundup_is_there(page):
    for module, names in re.findall(r"^ *from (groundup[.\w]*) import (\w+(?:, \w+)*)", page.read_text("utf-8"), re.MULTILINE):
        tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        defined |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert set(names.split(", ")) <= defined, module


def written() -> list[tuple[str, str]]:
    """Page and command line of each `groundup ...` that stands in a block, indented, or in backticks by itself."""
    found = []
    for page in EVERY:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [re.sub(r"^\.venv/bin/", "", line) for line in commands(page)]
        lines += [line.strip() for line in text.splitlines() if line.startswith("    groundup ")]
        lines += re.findall(r"`(groundup [a-z][^`\n]*)`", text)
        found += [(page.name, line.partition("  #")[0]) for line in lines if line.startswith("groundup ")]
    return found


@pytest.mark.parametrize("page, line", written())
def test_every_command_that_is_written_exists(page, line):
    check(line)


def check(line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), f"no command {words[0]}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", ["groundup rum tiny", "groundup run tiny --dry", "groundup corpus tone x"])
def test_one_that_does_not_is_noticed(line):
    with pytest.raises(AssertionError):
        check(line)

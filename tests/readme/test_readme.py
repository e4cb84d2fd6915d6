"""The README's commands run as they stand there; the laptop recipe and its run folder give way to the tiny ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def test_the_readme_has_its_commands():
    assert {"make run", "make test"} < set(COMMANDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the commands put what they make: one builds on another."""
    return tmp_path_factory.mktemp("made")


@pytest.mark.parametrize("command", [line for line in COMMANDS if line != "make test"])  # that is what runs this test
def test_command(command, tiny_run, environment, made):
    if command == "make run":
        if not (REPOSITORY / ".venv" / "installed").exists():
            pytest.skip("make run would install first; `make setup` has not been called in this checkout")
        command = f"make --no-print-directory run RECIPE=tiny RUN={tiny_run.folder}"
    command = command.replace(".venv/bin/groundup", f"{sys.executable} -m groundup")
    command = command.replace("run laptop", "run tiny").replace("runs/laptop", str(tiny_run.folder))
    command = re.sub(r"(?<= )runs/", f"{made}/", command)
    if command.endswith("run tiny"):
        command += f" --run {tiny_run.folder}"
    outside_make = {name: value for name, value in environment.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, shell=True, cwd=REPOSITORY, env=outside_make, input="What does `os.getcwd` do?\n",
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code, tiny_run):
    names: dict = {}
    exec(code.replace("runs/laptop", str(tiny_run.folder)), names)
    ids = names["tokenizer"]("def read(self):", return_tensors="pt")
    assert names["model"](**ids).logits.shape[-1] == len(names["tokenizer"])


def test_files_named_in_the_readme_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPOSITORY / path).exists(), path

"""The file to read first runs as it stands, needs torch alone, and learns what it says that it learns."""

import ast
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "examples" / "first_file.py"


def test_it_learns(tmp_path):
    done = subprocess.run([sys.executable, FILE], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = float(re.search(r"knows nothing: (.+) nats", done.stdout)[1])
    losses = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("pre-training, step")]
    assert losses == sorted(losses, reverse=True) and losses[-1] < start / 4
    first, last = (float(line.rpartition(" ")[2]) for line in lines if line.startswith("preferences, step"))
    assert first == 0.69 and last < 0.5  # log 2: the model begins as its reference
    before, after = map(int, re.search(r"(\d+)% of the answers were, (\d+)% are", done.stdout).groups())
    assert after >= before + 20


def test_it_needs_torch_alone():
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} - sys.stdlib_module_names == {"torch"}

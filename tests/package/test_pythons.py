"""The sources compile, without a warning, on every Python that the metadata states and this machine has."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STATED = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language :: Python :: 3.")]
# Compiled in memory: nothing is written beside the sources.
COMPILE = """
import pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob("*.py"):
    compile(path.read_bytes(), str(path), "exec")
"""


def python(version: str) -> str | None:
    """On the path, or beside the Python that runs this, as version managers lay them out."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}"))
    return str(beside[0]) if beside else shutil.which(f"python{version}")


def test_this_python_is_a_stated_one():
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in STATED


@pytest.mark.parametrize("version", STATED)
@pytest.mark.parametrize("folder", ["src", "examples"])
def test_sources_compile(version, folder):
    if (program := python(version)) is None:
        pytest.skip(f"no Python {version} on this machine")
    done = subprocess.run([program, "-W", "error", "-c", COMPILE, ROOT / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

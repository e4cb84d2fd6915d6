"""The wheel by itself: built from this tree, installed into an empty environment, used in another folder.

Nothing is downloaded: the environment finds its libraries where these tests find theirs.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "groundup"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# A tenth of the tiny recipe: every stage runs, and none for long.
SMALL = {
    "threads": "1",
    "pages.sources": '[{source="topics:", domain="reference"}, {source="stdlib:", domain="code", max_mb=1.5}]',
    "mixture.weights": "{reference=0.5, code=0.5}",
    "corpus.held_out": "0.2",
    "tokenizer.vocabulary": "512",
    "base.tokens": "40000",
    "evaluation.held_out_kb": "20",
    "evaluation.sentence_pairs": "20",
    "evaluation.questions": "20",
    "preferences.prompts": "24",
    "preferences.held_out_prompts": "16",
    "sft.max_objects": "60",
    "ppo.iterations": "1",
}


def run(*command: object, **options: object) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")  # building writes into the tree that it builds
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, tree)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tree / "out", tree)
    (built,) = (tree / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The scripts' folder of an environment that holds the wheel alone, and sees the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    scripts = folder / "bin"
    where = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    # A folder named in a .pth file is searched after the environment's own, and the .pth files in it are not read: what is
    # installed here in editable mode is not found.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(where, "libraries.pth").write_text("\n".join(sorted(libraries)), encoding="utf-8")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", f"--python={scripts / 'python'}", "install", *options, wheel)
    return scripts


@pytest.fixture
def elsewhere(tmp_path):
    """Options for a program that runs in an empty folder, with this tree's `src` out of sight."""
    hidden = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"cwd": tmp_path, "env": hidden | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}}


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("groundup/")}
    made = {"__pycache__"}
    here = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and not made & set(path.parts) and path.suffix != ".so"
    }
    assert held == here


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = importlib.metadata.PathDistribution(zipfile.Path(archive, name.rpartition("/")[0] + "/")).metadata
    assert metadata["License-Expression"] == "Apache-2.0"
    for file in metadata.get_all("License-File"):
        held = archive.read(f"{name.rpartition('/')[0]}/licenses/{file}").decode()
        assert held == (ROOT / file).read_text(encoding="utf-8")
    stated = {line.rpartition(" ")[2] for line in metadata.get_all("Classifier") if re.search(r"Python :: 3\.\d+$", line)}
    assert ".".join(map(str, sys.version_info[:2])) in stated
    assert metadata["Requires-Python"] == ">=" + min(stated, key=lambda version: int(version.partition(".")[2]))


def test_it_is_the_installed_one_that_runs(installed, elsewhere):
    code = "import groundup, pathlib; print(pathlib.Path(groundup.__file__).resolve())"
    found = Path(run(installed / "python", "-c", code, **elsewhere).stdout.strip())
    assert found.is_relative_to(installed.resolve().parent)
    assert run(installed / "groundup", "--version", **elsewhere).stdout == f"groundup {PROJECT['version']}\n"


def test_a_run_in_another_folder(installed, elsewhere, tmp_path):
    changes = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    done = run(installed / "groundup", "run", "tiny", "--run", "first", *changes, **elsewhere)
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)
    assert (tmp_path / "first" / "report" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "first" / "dpo" / "model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]


def test_what_ships_is_found_there(installed, elsewhere):
    """Data files that the run does not open: the word list, and the extractor's weights."""
    code = (
        "import importlib.resources, groundup, numpy, pathlib;"
        "root = pathlib.Path(groundup.__file__).parent;"
        "print(len(list(root.rglob('*.txt'))), [sorted(numpy.load(path)) != [] for path in root.rglob('*.npz')])"
    )
    assert run(installed / "python", "-c", code, **elsewhere).stdout == "1 [True]\n"


def test_init_writes_a_recipe_that_runs(installed, elsewhere, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Bees\n\n" + "Bees fly to flowers and bring nectar home. " * 30)
    done = run(installed / "groundup", "init", "mine", "--pages", "notes", **elsewhere)
    command = json.loads(done.stdout)["next"].split()
    plan = run(installed / command[0], *command[1:], **elsewhere)
    assert set(json.loads(plan.stdout.splitlines()[-1])["plan"].values()) == {"make"}

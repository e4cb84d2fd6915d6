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
    """Data files that the run does not open: the word lists, and the extractor's weights."""
    code = (
        "import importlib.resources, groundup, numpy, pathlib;"
        "root = pathlib.Path(groundup.__file__).parent;"
        "print(len(list(root.rglob('*.txt'))), [sorted(numpy.load(path)) != [] for path in root.rglob('*.npz')])"
    )
    assert run(installed / "python", "-c", code, **elsewhere).stdout == "22 [True]\n"


def test_init_writes_a_recipe_that_runs(installed, elsewhere, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Bees\n\n" + "Bees fly to flowers and bring nectar home. " * 30)
    done = run(installed / "groundup", "init", "mine", "--pages", "notes", **elsewhere)
    command = json.loads(done.stdout)["next"].split()
    plan = run(installed / command[0], *command[1:], **elsewhere)
    assert set(json.loads(plan.stdout.splitlines()[-1])["plan"].values()) == {"make"}


RIGHT = '''\
from pathlib import Path

import groundup
from groundup import Model, Tokenizer


def make(texts: list[str], folder: Path) -> Model:
    tokenizer: Tokenizer = groundup.train_tokenizer(texts, 300, folder / "tok")
    ids: list[int] = tokenizer("a text")
    model = groundup.pretrain(texts, tokenizer, folder / "base", depth=1, context_length=32)
    chat = groundup.sft(model, [{"prompt": "a", "completion": "b"}], folder / "sft", epochs=1)
    better = groundup.dpo(chat, folder / "preferences.jsonl", folder / "dpo", beta=0.1)
    score: float = groundup.reward(chat, folder / "preferences.jsonl", folder / "reward").score([])
    print(len(tokenizer), ids, score, groundup.evaluate(better, texts)["bits_per_byte"])
    return better


def use(folder: str) -> str:
    model = groundup.load(folder)
    nats: float = model.log_likelihood("The mouse eats", " the cheese")
    print(nats, model.perplexity("a"), model.bits_per_byte("a"), sum(p.numel() for p in model.network.parameters()))
    model.save("copy")
    run = groundup.open_run(folder)
    print(run.steps, run.results["base"], run.report)
    return model.generate("a", max_tokens=3, temperature=0.0) + run.model("sft").chat([{"role": "user", "content": "a"}])


try:
    use("runs/laptop")
except groundup.UserError as error:
    print(error)
'''
# Lines that are wrong, and the kind of their error.
WRONG = {
    "groundup.lode": "attr-defined",
    "groundup.load(3)": "arg-type",
    "groundup.load('a').generate(3)": "arg-type",
    "perplexity: int = groundup.load('a').perplexity('b')": "assignment",
    "groundup.Tokenizer.load(Path('a'))(3)": "arg-type",
    "groundup.sft([], [], 'a')": "arg-type",
}


def test_a_program_that_uses_it_is_checked_by_mypy(installed, elsewhere, tmp_path):
    """Strictly, all types known; torch and others of that size are left out, which takes two thirds of the time."""
    pytest.importorskip("mypy", reason="needs the `test` extra")
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("\n".join(["from pathlib import Path; import groundup", *WRONG, ""]), encoding="utf-8")
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,numpy.*,pyarrow.*,pydantic.*]\nfollow_imports=skip\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python", "right.py", "wrong.py"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **elsewhere)
    found = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, flags=re.MULTILINE)
    assert found == [("wrong", str(line), kind) for line, kind in enumerate(WRONG.values(), start=2)], done.stdout + done.stderr

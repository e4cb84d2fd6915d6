"""What several tests share: toy models, the command line as a subprocess, and one finished run of recipes/tiny.toml."""

import contextlib
import faulthandler
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import filelock
import hypothesis
import pytest

# Threads of models this small wait more than they work; spinning meanwhile, as the command line's do for a while, takes
# twice the processor time of a whole run. PyTorch reads this when it is imported; the results are the same bits.
os.environ["GOMP_SPINCOUNT"] = "0"

import torch

import groundup
from groundup import cli, kernels
from groundup.core import device, log
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[1]
TINY = REPOSITORY / "src" / "groundup" / "recipes" / "tiny.toml"

TIME = {name: function for name, function in vars(time).items() if callable(function)}

# The same examples in every run, whatever the machine's load.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
log.to_terminal()

# A shell that starts the tests in the background has them ignore Ctrl-C, and whatever they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(groundup.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
}


# Files that take longest begin first: of several workers none begins with one when the others are at their ends. The first
# makes the run that others copy; those after it need none.
LONGEST = (
    "test_faults.py", "test_wheel.py", "test_parallel.py", "test_whole_run.py", "test_bit_flips.py", "test_pages.py",
    "test_own_files.py", "test_processes.py", "test_label_page.py", "test_ray.py", "test_chat.py", "test_first_file.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests, which are short
    config.addinivalue_line("markers", "float32_kernels: skipped, with the reason, where there are none")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("float32_kernels") and isinstance(reason := kernels.float32_or_reason(), str):
        pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a test logs may be no Unicode on purpose; between the processes of pytest-xdist it must be."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """What is left to do takes seconds; where it hangs, the run ends with everybody's stack."""
    faulthandler.dump_traceback_later(300, exit=True, file=os.dup(2))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def device_is_as_before() -> Iterator[None]:
    """`device.choose` takes more threads and flushes denormal numbers to zero, for the whole process and all later tests."""
    yield
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    device.choose.cache_clear()


@pytest.fixture
def within_a_minute() -> Iterator[None]:
    """A guard against hanging, in processor time, which other programs do not take; how fast something is, `benchmarks/` say."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 60


@pytest.fixture(scope="session")
def growth() -> Callable[..., float]:
    """Processor time of `work(4 * size)` over that of `work(size)`: 4 where it is linear, 16 where it is quadratic.

    Both are measured by turns, and the least of five counts, which other programs disturb least.
    """

    def seconds(work: Callable[[int], object], size: int) -> float:
        start = time.process_time()
        work(size)
        return time.process_time() - start

    def ratio(work: Callable[[int], object], size: int) -> float:
        pairs = [(seconds(work, size), seconds(work, 4 * size)) for _ in range(5)]
        once, fourfold = (min(found) for found in zip(*pairs, strict=True))
        return fourfold / once

    return ratio


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment variables of subprocesses."""
    return ENVIRONMENT


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    return TINY


@pytest.fixture(scope="session")
def run_groundup() -> Callable[..., subprocess.CompletedProcess]:
    """Call the command line; further options are those of `subprocess.run`."""

    def call(*arguments: object, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "groundup", *map(str, arguments)]
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        settings = {"capture_output": True, "text": True, "encoding": "utf-8", "env": ENVIRONMENT, "timeout": 600}
        return subprocess.run(command, cwd=REPOSITORY, **{**settings, **options})

    return call


@pytest.fixture
def groundup_here() -> Callable[..., subprocess.CompletedProcess]:
    """The command line in this process, where torch is imported already; it takes a process of its own three seconds."""

    def call(*arguments: object, input: str = "") -> subprocess.CompletedProcess:
        command = ["groundup", *map(str, arguments)]
        out, err, code = io.StringIO(), io.StringIO(), 0
        given = io.TextIOWrapper(io.BytesIO(input.encode()), encoding="utf-8")
        with (
            mock.patch.multiple(sys, argv=command, stdin=given),
            mock.patch.dict(os.environ),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return call


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    outcome: subprocess.CompletedProcess
    seconds: float


@pytest.fixture(scope="session")
def tiny_run(run_groundup, tmp_path_factory) -> FinishedRun:
    """The whole pipeline, run once for all of pytest's workers, each of which has a copy; whoever changes it copies it again."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-run"
    with filelock.FileLock(f"{shared}.lock"):
        if not shared.exists():
            made = base / "runs" / "tiny"  # as long a path as that of the copies, for what is said in columns
            start = time.monotonic()
            outcome = run_groundup("run", TINY, "--run", made)
            said = [text.replace(str(made), "RUN FOLDER") for text in (outcome.stdout, outcome.stderr)]
            (made.parent / "outcome.json").write_text(json.dumps([outcome.returncode, *said, time.monotonic() - start]))
            made.parent.rename(shared)
    folder = Path(shutil.copytree(shared / "tiny", tmp_path_factory.mktemp("run") / "tiny"))
    code, out, err, seconds = json.loads((shared / "outcome.json").read_text())
    said = [text.replace("RUN FOLDER", str(folder)) for text in (out, err)]
    return FinishedRun(folder, subprocess.CompletedProcess([], code, *said), seconds)


@pytest.fixture(scope="session")
def toy_decoder() -> Callable[..., Decoder]:
    """A small random decoder; every parameter is random, so nothing cancels by accident."""

    def make(seed: int = 0, scale: float = 0.3, **changes: object) -> Decoder:
        shape = {
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
        }
        model = Decoder(DecoderConfig(**{**shape, **changes}))
        randomise(model, seed, scale)
        return model

    return make


class Killed(BaseException):
    """As SIGKILL ends a program: no handler of errors knows it."""


@pytest.fixture
def killed(monkeypatch) -> Callable[..., type[Killed]]:
    """Have a module's function end the program at given calls of it, counted from 1; returns what it raises."""

    def arrange(module: object, name: str, *calls: int) -> type[Killed]:
        original, count = getattr(module, name), itertools.count(1)

        def killing(*arguments: object, **settings: object) -> object:
            if next(count) in calls:
                raise Killed
            return original(*arguments, **settings)

        monkeypatch.setattr(module, name, killing)
        return Killed

    return arrange


def randomise(model: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)


@pytest.fixture
def replace_time(monkeypatch) -> Callable[..., None]:
    """`replace_time(module, monotonic=…)`: functions of `time` as this module alone sees them."""

    def replace(module: ModuleType, **functions: Callable[..., object]) -> None:
        monkeypatch.setattr(module, "time", SimpleNamespace(**(vars(time) | functions)))

    return replace


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[object]:
    """The process's clock stays as it is: a server of another test that sleeps until 11 days from now does not stop."""
    result = yield
    changed = [name for name, function in TIME.items() if getattr(time, name) is not function]
    assert not changed, f"time.{changed[0]} is replaced for every thread of this process; use the fixture replace_time"
    return result


@pytest.fixture(scope="session")
def toy_tokenizer() -> Tokenizer:
    text = ["what does the function return", "it returns the path of the file", "def path(file):\n    return file\n"]
    return Tokenizer.from_merges(bpe.train(bpe.count_pretokens(text * 9), 300))


@pytest.fixture(scope="session")
def listening() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with listening(models) as address`: a server of these models on loopback, in a thread."""
    pytest.importorskip("fastapi", reason="needs the `serve` extra")
    from groundup.serving.openai_api import create_app
    from groundup.serving.web import bind
    from groundup.serving.web import server as server_of

    @contextlib.contextmanager
    def listen(models: dict, **settings: object) -> Iterator[str]:
        socket = bind("127.0.0.1", 0)
        server = server_of(create_app(models, **settings), grace=2)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive(), "the server does not stop"

    return listen


@pytest.fixture(scope="module")  # no longer: while it lives, no event loop can run in this thread
def browser() -> Iterator[object]:
    """Playwright's, over the Chromium or Chrome that is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the `test` extra")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()

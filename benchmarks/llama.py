"""llama.cpp's own library, asked from C++, so that nothing but it is measured.

`npm install --omit=optional node-llama-cpp@3.21.1 @node-llama-cpp/linux-x64@3.21.1` has it compiled, and its source, of which
the headers are, as a git bundle. Needs g++ and git.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent / "llama_streams.cpp"


class Streams(NamedTuple):
    speed: float  # tokens per second of all streams together, without reading the prompts
    speed_with_prompts: float  # with it
    answers: list[list[int]]


def installed(node: Path | None) -> bool:
    return node is not None and _libraries(node).is_dir() and _bundle(node).is_file()


def streams(
    node: Path, file: Path, prompts: Sequence[Sequence[int]], new: int, threads: int, *, exact: bool = True, rounds: int = 3
) -> Streams:
    """Greedy answers of `new` tokens to all prompts at once from a GGUF; the fastest of the rounds."""
    libraries = _libraries(node)
    with tempfile.TemporaryDirectory() as work:
        git = ["git", "-c", "advice.detachedHead=false"]
        subprocess.run([*git, "clone", "--quiet", "--no-checkout", _bundle(node), f"{work}/source"], check=True)
        subprocess.run([*git, "-C", f"{work}/source", "checkout", "--quiet", "HEAD", "--", "include", "ggml/include"], check=True)
        headers = [f"-I{work}/source/include", f"-I{work}/source/ggml/include"]
        linked = [*libraries.glob("libllama.v*.so"), *libraries.glob("libggml.v*.so"), libraries / "libggml-base.so"]
        program = Path(work) / "streams"
        words = ["g++", "-O2", "-std=c++17", *headers, SOURCE, "-o", program, *linked, f"-Wl,-rpath,{libraries}"]
        subprocess.run(words, check=True)
        program_input = "\n".join([str(len(prompts)), *(" ".join(map(str, [len(prompt), *prompt])) for prompt in prompts)])
        words = [program, file, libraries, str(threads), str(new), str(int(exact)), str(rounds)]
        done = subprocess.run(words, input=program_input, text=True, capture_output=True, check=True)
    first, *rows = done.stdout.splitlines()
    speed, speed_with_prompts = map(float, first.split())
    return Streams(speed, speed_with_prompts, [[int(token) for token in row.split()] for row in rows])


def _libraries(node: Path) -> Path:
    return node / "node_modules" / "@node-llama-cpp" / "linux-x64" / "bins" / "linux-x64"


def _bundle(node: Path) -> Path:
    return node / "node_modules" / "node-llama-cpp" / "llama" / "gitRelease.bundle"

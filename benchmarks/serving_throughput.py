"""16 clients at a time over HTTP, `groundup serve` beside `transformers serve`, turn by turn on one folder; and what clients do.

The folder is a Qwen3 of 6 layers x 256 with vocabulary 4,096 and random weights, so that hardly anything repeats itself and
drafts are of no use. Each of 16 streams asks for 128 tokens, greedy, after a prompt of some 32; tokens per second are of the
whole call. transformers serves with continuous batching, and is warmed up. Then ours alone: how long a first token takes beside
15 other streams, over how long it takes alone; 1,000 requests, 100 at a time: how many are answered in full, and what the process
had resident before and after; 200 clients that leave in the middle: whether every slot is free afterwards.

With `--node DIR` (`llama.py`) llama.cpp continues the same 16 prompts in one batch, before the servers are there: no HTTP,
its own C library, f32; of its cache as it is if not told (f16, flash attention) and in f32 the faster counts. Ours
must make 1.2 times it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

import httpx
import torch

import llama
from common import conclude, machine
from groundup.core.executor import cores
from groundup.model import model_folder as model_folder
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.serving.gguf_file import export
from groundup.tokenizer import bpe
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer

STREAMS, NEW, ROUNDS, BAR, LLAMA_BAR, FIRST_BAR = 16, 128, 3, 4.0, 1.2, 1.5
SHAPE = DecoderConfig(
    vocab_size=4096, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    intermediate_size=768, max_position_embeddings=1024,
)  # fmt: skip
CLAIM = "16 concurrent streams over HTTP, 6 x 256: tokens a second over transformers serve's with continuous batching"
WORDS = tuple(re.findall("[a-z]+", "what does the function return when a file of that name is not there and nobody wrote to it"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", type=Path, help="where node-llama-cpp is installed")
    options, _ = parser.parse_known_args()
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        no_end = write(folder)
        peer_alone = llama_speed(options.node, folder) if llama.installed(options.node) else None
        with groundup_serve(folder) as (ours, process), transformers_serve(folder) as theirs:
            speeds: dict[str, list[float]] = {ours: [], theirs: []}
            for number in range(-1, ROUNDS):  # the first warms up
                for address in speeds:
                    speed = asyncio.run(streams(address, folder if address == theirs else Path("model")))
                    if number >= 0:
                        speeds[address].append(speed)
            mine, peer = (median(speeds[address]) for address in (ours, theirs))
            print(f"tokens per second: ours {mine:,.0f}, transformers serve {peer:,.0f}: {mine / peer:.2f} times")
            first = others(ours, process.pid, no_end)
    named, holds = "transformers serve", mine / peer >= BAR
    if peer_alone is not None:
        named = f"llama.cpp, by its C library: {peer_alone:,.0f}, {mine / peer_alone:.2f} times (bar {LLAMA_BAR}); {named}"
        holds &= mine / peer_alone >= LLAMA_BAR
    holds &= first <= FIRST_BAR
    named = f"first token beside 15 streams {first:.2f} times as late as alone (bar {FIRST_BAR}); {named}"
    conclude(CLAIM, mine, "tokens/s", BAR, holds, peer=named, peer_figure=peer)


def llama_speed(node: Path, folder: Path) -> float:
    """Tokens per second of the same prompts, while no server is there; reading the prompts is not in its time."""
    tokenizer, file = of_model(folder), folder.with_suffix(".gguf")
    export(folder, file, "f32")
    prompts = [[tokenizer.begin_of_text, *tokenizer.encode(prompt(number))] for number in range(STREAMS)]
    speeds = {}
    for exact in (False, True):
        speeds[exact] = llama.streams(node, file, prompts, NEW, cores(), exact=exact, rounds=2 * ROUNDS).speed
    print(f"llama.cpp, f32: {speeds[False]:,.0f} tokens per second as it is, {speeds[True]:,.0f} with its cache in f32")
    return max(speeds.values())


def write(folder: Path) -> dict[str, int]:
    """And a bias by which no answer ends before its time."""
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(topics.values()), SHAPE.vocab_size))
    model, generator = Decoder(SHAPE), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.06
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)
    model_folder.save(folder, model, tokenizer, chat=False)
    return {str(tokenizer.end_of_text): -100}


@contextlib.contextmanager
def groundup_serve(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    command = [sys.executable, "-m", "groundup", "serve", f"model={folder}", "--port", "0", "--waiting", "1000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "/v1" in line)
        yield re.findall(r"http://\S+(?=/v1)", line)[0], process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    port = "18765"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--continuous-batching"]
    command += ["--port", port, "--dtype", "float32", "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def prompt(number: int) -> str:
    return " ".join((WORDS * 2)[number % len(WORDS) :][:20])


async def streams(address: str, model: Path) -> float:
    """Tokens per second of all streams together."""
    async with httpx.AsyncClient(timeout=600) as client:

        async def request(number: int) -> int:
            body = {"model": str(model), "prompt": prompt(number), "max_tokens": NEW, "temperature": 0}
            answer = await client.post(f"{address}/v1/completions", json=body)
            answer.raise_for_status()
            return answer.json()["usage"]["completion_tokens"]

        start = time.perf_counter()
        counts = await asyncio.gather(*(request(number) for number in range(STREAMS)))
        return sum(counts) / (time.perf_counter() - start)


def others(address: str, pid: int, no_end: dict[str, int]) -> float:
    """Prints what clients do to it; how many times as late a first token is beside the other streams."""
    turns = [[asyncio.run(first_token(address, count, no_end)) for count in (0, STREAMS - 1)] for _ in range(31)]
    alone, crowded = map(median, zip(*turns, strict=True))
    times = f"{1000 * alone:.0f} ms alone, {1000 * crowded:.0f} ms beside {STREAMS - 1} streams: {crowded / alone:.2f} times"
    print(f"first token: {times}")
    before = resident(pid)
    full = asyncio.run(many(address, 1000, 100, no_end))
    print(f"1,000 requests, 100 at a time: {full} answered in full; resident {before} MB before, {resident(pid)} MB after")
    asyncio.run(leave(address, 200, no_end))
    time.sleep(2)
    metrics = httpx.get(f"{address}/metrics").text
    counts = re.findall(r"groundup_(?:requests_running|requests_waiting|cancelled_total)\{.*?\} (\d+)", metrics)
    print(f"200 clients left: cancelled {counts[0]}, at work {counts[1]}, waiting {counts[2]}")
    return crowded / alone


async def first_token(address: str, others: int, no_end: dict[str, int]) -> float:
    async with httpx.AsyncClient(timeout=600) as client:
        body = {"model": "model", "temperature": 0, "stream": True, "logit_bias": no_end}
        company = [
            asyncio.create_task(read_all(address, {**body, "prompt": prompt(n), "max_tokens": NEW})) for n in range(others)
        ]
        await asyncio.sleep(0.3 if others else 0)
        start = time.perf_counter()
        request = {**body, "prompt": prompt(5), "max_tokens": 2}
        async with client.stream("POST", f"{address}/v1/completions", json=request) as answer:
            async for _ in answer.aiter_lines():
                break
        seconds = time.perf_counter() - start
        await asyncio.gather(*company)
        return seconds


async def read_all(address: str, body: dict) -> None:
    """A stream to its end, and no more than that: on two cores a whole client for each would be measured too."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len(data)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + data)
    while await reader.read(1 << 16):
        pass
    writer.close()


async def many(address: str, count: int, at_once: int, no_end: dict[str, int]) -> int:
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=at_once)) as client:

        async def request(number: int) -> bool:
            async with gate:
                body = {"model": "model", "prompt": prompt(number), "max_tokens": 8, "seed": number, "logit_bias": no_end}
                answer = await client.post(f"{address}/v1/completions", json=body)
                return answer.status_code == 200 and json.loads(answer.text)["usage"]["completion_tokens"] == 8

        return sum(await asyncio.gather(*map(request, range(count))))


async def leave(address: str, count: int, no_end: dict[str, int]) -> None:
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=50)) as client:

        async def request(number: int) -> None:
            body = {"model": "model", "prompt": prompt(number), "max_tokens": 900, "stream": True, "logit_bias": no_end}
            async with client.stream("POST", f"{address}/v1/completions", json=body) as answer:
                async for _ in answer.aiter_lines():
                    break

        await asyncio.gather(*map(request, range(count)))


def resident(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) // 1000


if __name__ == "__main__":
    main()

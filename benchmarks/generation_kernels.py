"""Greedy decoding by the kernels against the same steps by PyTorch, and against llama.cpp: tokens per second at 1 and 16 rows.

A Qwen3 of 6 layers x 256 with vocabulary 4,096, random weights (0.06), float32. No drafts: a pass a token. Prompts of 32 tokens,
which are not in the time, 128 new ones; turn by turn, five rounds, the least time of each. By one thread it is the process's own
processor time, which a busy neighbour changes little; by more (`--threads`) the clock's, which wants a quiet machine. With
`--node DIR` llama.cpp's own C library (`llama.py`) takes the same steps, from a GGUF in float32 that `groundup export`
writes, with a cache in float32; its time is the clock's.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch

import llama
import timed
from common import conclude, machine
from groundup.generation.decoding import Decoding
from groundup.model import model_folder as model_folder
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.serving.gguf_file import export

CLAIM = "greedy decoding in float32, 6 x 256, 16 rows: tokens a second by kernels over PyTorch's"
SHAPE = DecoderConfig(
    vocab_size=4096, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, intermediate_size=768, max_position_embeddings=1024,
)  # fmt: skip
ROWS, PROMPT, NEW, ROUNDS, BAR = (1, 16), 32, 128, 5, 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", type=Path, help="where node-llama-cpp is installed")
    parser.add_argument("--threads", type=int, default=1)
    options, _ = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, {options.threads} threads")
    model, ratios, same = random(), {}, True
    if not Decoding(model, 1, 1).steps:
        return conclude(CLAIM, None, "times", BAR, None, reason=Decoding(model, 1, 1).disabled or "no kernels")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for rows in ROWS:
        prompts = torch.randint(4096, (rows, PROMPT), generator=torch.Generator().manual_seed(rows)).tolist()
        best = {True: 1e9, False: 1e9}
        answers: dict[bool, list[list[int]]] = {}
        for _ in range(ROUNDS):
            for by_kernels in best:
                seconds, answers[by_kernels] = decoded(model, prompts, by_kernels, clock)
                best[by_kernels] = min(best[by_kernels], seconds)
        speed = {side: rows * (NEW - 1) / seconds for side, seconds in best.items()}
        ratios[rows] = speed[True] / speed[False]
        same &= answers[True] == answers[False]
        line = f"{rows:>2} rows: kernels {speed[True]:>6,.0f} tokens/s, PyTorch {speed[False]:>6,.0f}: {ratios[rows]:.2f} times"
        if llama.installed(options.node):
            llama_streams = theirs(options.node, model, prompts, options.threads)
            equal = sum(a == b for a, b in zip(llama_streams.answers, answers[True], strict=True))
            line += f"; llama.cpp {llama_streams.speed:>6,.0f}, {equal} of {rows} answers equal"
        print(line, flush=True)
    holds = same and min(ratios.values()) >= BAR
    return conclude(CLAIM, ratios[16], "times", BAR, holds, peer=f"PyTorch; 1 row: {ratios[1]:.2f} times")


def random() -> Decoder:
    model = Decoder(SHAPE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.06, generator=generator)
    return model.eval()


@torch.inference_mode()
def decoded(
    model: Decoder, prompts: list[list[int]], by_kernels: bool, clock: Callable[[], float]
) -> tuple[float, list[list[int]]]:
    """Seconds without those of the prompts, and what was said."""
    state = Decoding(model, len(prompts), PROMPT + NEW)
    if not by_kernels:
        state.steps = None
    tokens = [state.prefill(prompts).argmax(-1)]
    start = clock()
    for _ in range(NEW - 1):
        tokens.append(state.decode(tokens[-1][:, None])[:, 0].argmax(-1))
    return clock() - start, torch.stack(tokens, 1).tolist()


def theirs(node: Path, model: Decoder, prompts: list[list[int]], threads: int) -> llama.Streams:
    with tempfile.TemporaryDirectory() as work:
        tokenizer = timed.byte_pairs(list(topics.values()), SHAPE.vocab_size)
        model_folder.save(Path(work) / "model", model, tokenizer, chat=False)
        file = Path(work) / "f32.gguf"
        export(Path(work) / "model", file, "f32")
        return llama.streams(node, file, prompts, NEW, threads, rounds=ROUNDS)


if __name__ == "__main__":
    main()

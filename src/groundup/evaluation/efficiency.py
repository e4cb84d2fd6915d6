"""What an answer costs: time, memory, floating-point operations and energy (HELM, Liang et al. 2022, section 4.8).

A task's seconds are what evaluating it took, with shared prefixes and batches. Prefill and decode speeds are measured with one
prompt and nothing shared, so that they can be compared between models.
"""

import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from groundup.core.cost import cost
from groundup.generation.engine import Sampling, generate, room
from groundup.model.architectures import flops
from groundup.model.base import LanguageModel

PROMPT_TOKENS, DECODED_TOKENS = 512, 32  # less in a shorter context
REPEATS = 5


def speed(model: LanguageModel) -> dict[str, Any]:
    """{"prefill_tokens_per_second", "decode_tokens_per_second"}: medians, with the slowest and fastest of five repetitions as
    low and high; and "forward_flop_per_token" in a context as long as the prompt.

    One prompt of arbitrary tokens. Sampled, not greedy, so that no drafted tokens are accepted.
    """
    context = model.config.max_position_embeddings
    decoded = max(1, min(DECODED_TOKENS, context // 2 - 1))
    prompt_length = max(1, min(PROMPT_TOKENS, room(model, decoded + 1)))
    prompt = torch.randint(0, model.config.vocab_size, (prompt_length,), generator=torch.Generator().manual_seed(0)).tolist()

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        generate(model, [prompt], (), Sampling(tokens), 0)
        return time.perf_counter() - start

    seconds(2)  # warm-up
    prefill_seconds, decode_seconds = [], []
    for _ in range(REPEATS):
        prefill_seconds.append(seconds(1))
        decode_seconds.append(max(1e-9, seconds(decoded + 1) - prefill_seconds[-1]))
    return {
        "prefill_tokens_per_second": _tokens_per_second(prompt_length, prefill_seconds),
        "decode_tokens_per_second": _tokens_per_second(decoded, decode_seconds),
        "forward_flop_per_token": flops(model, prompt_length, 1) / 3,  # training's, without the two thirds of the backward pass
    }


def _tokens_per_second(tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    return {"value": tokens / median(seconds), "low": tokens / max(seconds), "high": tokens / min(seconds), "n": len(seconds)}


def of_task(model_speed: dict[str, Any], seconds: float, examples: int, machine: dict[str, float]) -> dict[str, Any]:
    """`model_speed`: the result of `speed`, empty for a model computed elsewhere. `examples`: those scored in these seconds,
    without resumed records. `machine`: watts, price_per_hour and grams_co2_per_kwh, as for the report.
    """
    return {
        "seconds": seconds, "examples": examples, "examples_per_second": examples / seconds if seconds else 0.0,
        "peak_memory_bytes": peak_memory(), **model_speed, "watts": machine["watts"], **cost(seconds, **machine),
    }  # fmt: skip


def peak_memory() -> int:
    """Peak bytes of this process so far, or on the GPU if one is used; 0 where the system does not say."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows_of_table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["efficiency", "seconds", "examples/s", "prefill tokens/s", "decode tokens/s", "MFLOP/token", "peak MB", "Wh"]]
    for result in results:
        costs = result["efficiency"]
        speed_cells = ["", "", ""]
        if "forward_flop_per_token" in costs:
            speed_cells = [f"{costs[f'{name}_tokens_per_second']['value']:,.0f}" for name in ("prefill", "decode")]
            speed_cells.append(f"{costs['forward_flop_per_token'] / 1e6:,.1f}")
        rows.append([
            result["label"], f"{costs['seconds']:.1f}", f"{costs['examples_per_second']:.1f}", *speed_cells,
            f"{costs['peak_memory_bytes'] / 1e6:,.0f}", f"{1000 * costs['kwh']:.3g}",
        ])  # fmt: skip
    return rows

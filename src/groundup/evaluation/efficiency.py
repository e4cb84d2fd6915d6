"""What an answer costs: time, memory, floating-point operations and energy (HELM, Liang et al. 2022, section 4.8).

A task's seconds say what evaluating it took here, with shared prefixes and batches. The speed of reading and of writing is a
model's own: one prompt, nothing shared, so that two models compare.
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

PROMPT, WRITTEN = 512, 32  # tokens; less in a shorter context
REPEATS = 5


def speed(model: LanguageModel) -> dict[str, Any]:
    """{"prefill_tokens_per_second", "decode_tokens_per_second"}: medians, with the slowest and fastest of five repetitions as
    low and high; and "forward_flop_per_token" in a context as long as the prompt.

    One prompt of arbitrary tokens. Sampled, not greedy, so that no draft of several tokens is taken over.
    """
    context = model.config.max_position_embeddings
    written = max(1, min(WRITTEN, context // 2 - 1))
    length = max(1, min(PROMPT, room(model, written + 1)))
    prompt = torch.randint(0, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        generate(model, [prompt], (), Sampling(tokens), 0)
        return time.perf_counter() - start

    seconds(2)  # what is built at the first call
    reads, writes = [], []
    for _ in range(REPEATS):
        reads.append(seconds(1))
        writes.append(max(1e-9, seconds(written + 1) - reads[-1]))
    return {
        "prefill_tokens_per_second": _rates(length, reads),
        "decode_tokens_per_second": _rates(written, writes),
        "forward_flop_per_token": flops(model, length, 1) / 3,  # training's, without the two parts of the way back
    }


def _rates(tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    return {"value": tokens / median(seconds), "low": tokens / max(seconds), "high": tokens / min(seconds), "n": len(seconds)}


def of_task(own: dict[str, Any], seconds: float, examples: int, machine: dict[str, float]) -> dict[str, Any]:
    """With `own`, what `speed` says of the model, if it is computed here. `examples`: those scored in these seconds, without
    records that were there already. `machine`: watts, price_per_hour and grams_co2_per_kwh, by the report's rule.
    """
    return {
        "seconds": seconds, "examples": examples, "examples_per_second": examples / seconds if seconds else 0.0,
        "peak_memory_bytes": peak_memory(), **own, "watts": machine["watts"], **cost(seconds, **machine),
    }  # fmt: skip


def peak_memory() -> int:
    """Bytes that this process has held at once so far, or the GPU for it; 0 where the system does not say."""
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
        one = result["efficiency"]
        own = ["", "", ""]
        if "forward_flop_per_token" in one:
            own = [f"{one[f'{name}_tokens_per_second']['value']:,.0f}" for name in ("prefill", "decode")]
            own.append(f"{one['forward_flop_per_token'] / 1e6:,.1f}")
        rows.append([
            result["label"], f"{one['seconds']:.1f}", f"{one['examples_per_second']:.1f}", *own,
            f"{one['peak_memory_bytes'] / 1e6:,.0f}", f"{1000 * one['kwh']:.3g}",
        ])  # fmt: skip
    return rows

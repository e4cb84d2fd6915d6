"""The only module that knows processors: which device, which number format, how many threads, when compiling pays."""

import os
import platform
import shutil
from dataclasses import dataclass
from functools import cache

import torch

from groundup.core.errors import UserError
from groundup.core.executor import cores
from groundup.core.machine import processor_name

SWITCH = "GROUNDUP_KERNELS"

# Compiling takes about 40 s on two cores and makes a step 1.4 times faster; from this much work on it saves more than it takes.
COMPILE_PAYS_FROM_FLOPS = 5e13


@dataclass(frozen=True)
class Device:
    torch_device: torch.device
    training_dtype: torch.dtype  # of matrix products in training; parameters and optimizer state stay float32
    threads: int
    name: str
    reasons: tuple[str, ...]  # every derived decision with its reason, to be printed

    def compiling_pays(self, training_flops: float) -> tuple[bool, str]:
        """Whether torch.compile saves more time than it takes, and why."""
        if training_flops < COMPILE_PAYS_FROM_FLOPS:
            return False, f"not compiled: under {COMPILE_PAYS_FROM_FLOPS:.0e} FLOP it takes longer than it saves"
        if self.torch_device.type == "cpu" and not (
            os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        ):
            return False, "not compiled: no C++ compiler found; with g++ training is 1.4 times faster"
        return True, "compiled by torch: about 1.4 times faster from the second step on"


@cache
def choose(threads: int = 0) -> Device:
    """Pick the device and number format for this machine; `threads` = 0 takes one per core.

    The choice depends on the processor alone, never on a timing, so a resumed run computes the same numbers.
    """
    threads = threads or cores()
    torch.set_num_threads(threads)
    # Each step allocates its memory again: with pages of 2 MB, where the kernel offers them, a step is a tenth faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it at its first large tensor
    # Softmax gradients of unlikely tokens are denormal numbers, which make processors many times slower.
    torch.set_flush_denormal(True)
    # MKL looks up its vector functions at their first call. When two threads make that call together, one now and then gets
    # other code: the first cosines of one process in some hundred had other last bits. So one thread makes it first.
    torch.cos(torch.zeros(1))
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported()
        return Device(
            torch.device("cuda"),
            torch.bfloat16 if bf16 else torch.float32,
            threads,
            torch.cuda.get_device_name(),
            ("cuda: GPU found", "bfloat16: the GPU has it" if bf16 else "float32: the GPU has no bfloat16"),
        )
    if torch.backends.mps.is_available():
        return Device(
            torch.device("mps"),
            torch.float32,
            threads,
            platform.processor() or "Apple",
            ("mps: Apple GPU found", "float32: bfloat16 gains nothing there (nanochat, PR 793)"),
        )
    fast_bfloat16 = has_bfloat16_vectors()
    return Device(
        torch.device("cpu"),
        torch.bfloat16 if fast_bfloat16 else torch.float32,
        threads,
        processor_name(),
        (
            f"cpu: no GPU found; {threads} threads on {cores()} cores",
            "bfloat16 products: AMX or AVX-512 makes them 3 to 8 times faster than float32"
            if fast_bfloat16
            else "float32 products: this processor only emulates bfloat16",
        ),
    )


def kernel_limit() -> str | None:
    """The highest instruction set that kernels may use, from the environment, for tests and comparisons; None: no limit.

    Raises UserError for an unknown value.
    """
    value = os.environ.get(SWITCH)
    if value not in (None, "", "avx512", "avx2", "none"):
        raise UserError(f"{SWITCH} is {value[:40]!r}; it must be avx512, avx2 or none")
    return value or None


def has_bfloat16_vectors() -> bool:
    """Whether the processor multiplies bfloat16 vectors (AVX-512: AMD since 2022, Intel's servers since 2023), and may do so."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and kernel_limit() not in ("avx512", "avx2")


def has_tiles() -> bool:
    """Whether the processor also multiplies tiles of bfloat16 (AMX: Intel's servers since 2023)."""
    return has_bfloat16_vectors() and bool(torch.cpu.get_capabilities().get("amx_bf16"))

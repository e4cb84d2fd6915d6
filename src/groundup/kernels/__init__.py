"""Kernels in C++, compiled at first use and cached: loss, optimizers and experts here, for every architecture.

The decoder's layers in training are called from `model/native_layers.py`, in generation and for scores of
continuations from `generation/native_steps.py`.

Generation is in float32, by `vector.h` and thus for AVX2, AVX-512 and NEON; it needs nothing of the compiler but threads.
So is training where there is no bfloat16 (`float32.py`). Training in bfloat16 needs AVX-512 with bfloat16, and uses AMX tiles
where there are any. PyTorch's products reach less than half of what tiles can do, and between them its step waits for
memory. Here a row of the batch goes through a whole layer in the cache of one core; results are the same to the bit for any
number of threads, and about as near to float32's as PyTorch's own in bfloat16 (tests/test_kernels.py).
"""

import ctypes
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import c_float, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.core.device import SWITCH, has_bfloat16_vectors, has_tiles, kernel_limit
from groundup.core.executor import cores

logger = logging.getLogger(__name__)

HEADERS, SOURCES = (sorted(Path(__file__).parent.glob(kind)) for kind in ("*.h", "*.cpp"))
VECTORS, TILES = ("fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"), ("amx-tile", "amx-bf16")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")
# For every processor, by vector.h.
FLOAT32 = ("decoding.cpp", *(f"float32_{part}.cpp" for part in ("experts", "layers", "loss", "lstm", "optimizer")))
FLOAT32_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
BLOCK, MAX_CHANNELS = 32, 256  # as in the C++
PATIENCE = 900  # seconds for a source: some take 10 alone on a core, and two minutes beside a dozen other programs
_kept_threads = 0  # of the kernels, while PyTorch has one; 0: as many as PyTorch


class Unavailable(Exception):
    """There are no kernels; its text says why, for a message."""


def library() -> ctypes.CDLL:
    """The kernels of training, in bfloat16. Raises Unavailable where processor, compiler or system do not allow them."""
    return _or_raise(library_or_reason())


def float32_library() -> ctypes.CDLL:
    """The kernels in float32, of generation and training. Raises Unavailable where processor or compiler do not allow them."""
    return _or_raise(float32_or_reason())


def threads() -> int:
    """How many compute a kernel: as many as PyTorch has, or had before `only_in_kernels`."""
    return _kept_threads or torch.get_num_threads()


@contextmanager
def only_in_kernels() -> Iterator[None]:
    """Within it PyTorch's own operations take one thread, and kernels as many as before.

    For a step of which PyTorch computes a hundredth. At the end of each operation it waits for all of its threads: beside a busy
    program for some milliseconds, if one has lost its core.
    """
    global _kept_threads
    before, outer = torch.get_num_threads(), _kept_threads
    _kept_threads = threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _kept_threads = outer
        torch.set_num_threads(before)


def are_there(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels train in this format on this device; the first call compiles them."""
    library_of_dtype = {torch.bfloat16: library_or_reason, torch.float32: float32_or_reason}.get(dtype)
    return device.type == "cpu" and library_of_dtype is not None and not isinstance(library_of_dtype(), str)


def _or_raise(loaded: ctypes.CDLL | str) -> ctypes.CDLL:
    if isinstance(loaded, str):
        raise Unavailable(loaded)
    return loaded


@cache
def library_or_reason() -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none; cached, as a compiler may take long to fail."""
    if (highest := kernel_limit()) is not None:
        return f"{SWITCH}={highest}"
    if not has_bfloat16_vectors():
        return "the processor has no AVX-512 for bfloat16"
    flags = [*FLAGS, *(f"-m{name}" for name in (*VECTORS, *(TILES if has_tiles() else ())))]
    library = _compiled("kernels", [source for source in SOURCES if source.name not in FLOAT32], flags)
    if isinstance(library, str):
        return library
    library.request_amx.restype = ctypes.c_bool
    if not library.request_amx():
        return "the system does not let programs use AMX"
    float32_kernels = float32_or_reason()  # with AdamW
    return float32_kernels if isinstance(float32_kernels, str) else library


@cache
def float32_or_reason() -> ctypes.CDLL | str:
    """The compiled kernels in float32, for the widest vectors that the processor has, or why there are none."""
    vectors = float32_vectors()
    if isinstance(vectors, str):
        return vectors
    flags = [*FLOAT32_FLAGS, *(f"-m{name}" for name in vectors)]
    return _compiled("float32", [source for source in SOURCES if source.name in FLOAT32], flags)


def float32_vectors() -> tuple[str, ...] | str:
    """The compiler's names of the vector extensions to use, or why there are no kernels for the processor."""
    highest, has = kernel_limit(), torch.cpu.get_capabilities()
    if highest == "none":
        return f"{SWITCH}=none"
    if has.get("architecture") in ("aarch64", "arm64"):
        return ()  # all of them have NEON
    if has.get("avx512_f") and highest != "avx2":
        return ("avx2", "fma", "avx512f")
    if has.get("avx2") and has.get("fma3"):
        return ("avx2", "fma")
    return "the processor has neither AVX2 with FMA nor NEON"


def _compiled(name: str, sources: list[Path], flags: list[str]) -> ctypes.CDLL | str:
    """The library of these sources, or why there is none; that is logged as a warning, as the processor would allow it."""
    library = _library_of(name, sources, flags)
    if isinstance(library, str):
        logger.warning(f"native kernels disabled: {library}; using PyTorch")
    return library


def _library_of(name: str, sources: list[Path], flags: list[str]) -> ctypes.CDLL | str:
    compiler = os.environ.get("CXX") or "g++"
    try:
        cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "groundup"
    except RuntimeError:  # in a container the user may have no entry in /etc/passwd
        return "the user has no home folder to keep compiled kernels in: set XDG_CACHE_HOME to a folder"
    sources_and_flags = [" ".join([compiler, *flags]).encode(), *(source.read_bytes() for source in (*HEADERS, *sources))]
    digest = hashlib.sha256(b"".join(sources_and_flags)).hexdigest()[:16]
    path = cache_folder / f"{name}-{digest}.so"
    try:
        if not path.exists():
            cache_folder.mkdir(parents=True, exist_ok=True)
            logger.info(f"compiling kernels for this processor with {compiler}: some seconds, once")
            with tempfile.TemporaryDirectory(dir=cache_folder) as unfinished:
                _compile([*shlex.split(compiler), *flags], sources, Path(unfinished) / path.name)
                (Path(unfinished) / path.name).replace(path)
        return ctypes.CDLL(str(path))
    except FileNotFoundError:
        return f"no C++ compiler {compiler!r} found"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), *lines[:1] or [""])
        return f"{compiler} did not compile the kernels: {first[:200]}"
    except subprocess.TimeoutExpired:
        return f"{compiler} took more than {PATIENCE} seconds for a source of the kernels"
    except ValueError as error:  # of shlex
        return f"CXX={compiler}: {error}"
    except OSError as error:
        return f"the kernels could not be compiled in {cache_folder}: {error}"


def _compile(command: list[str], sources: list[Path], library: Path) -> None:
    """Compile as many sources at once as there are cores; after one has failed, no other begins."""

    def call(*arguments: str) -> None:
        subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=PATIENCE)

    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    with ThreadPoolExecutor(cores()) as pool:
        compilations = [
            pool.submit(call, "-c", str(source), "-o", str(compiled)) for source, compiled in zip(sources, objects, strict=True)
        ]
        try:
            for compilation in compilations:
                compilation.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    call("-shared", *map(str, objects), "-o", str(library))


def check_head(width: int) -> None:
    """Raises Unavailable unless head and loss of a model of this width can be trained by the kernels, on this machine."""
    if width % BLOCK:
        raise Unavailable(f"width {width}: no multiple of {BLOCK}")
    library()


def weighted_log_probability(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, indices_M: Tensor, slopes_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the targets' log-probabilities at `indices_M`, weighted by `slopes_N`, and its gradients by hidden states
    (bfloat16) and weight (float32).
    """
    if not len(indices_M):
        return slopes_N.new_zeros(()), torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD)
    logp_M, slopes_M, grad_hidden, grad_weight = _log_probabilities(hidden_ND, weight_VD, targets_N, indices_M, slopes_N)
    if len(indices_M) < len(hidden_ND):
        grad_hidden = torch.zeros_like(hidden_ND).index_copy_(0, indices_M, grad_hidden)
    return (logp_M * slopes_M).sum(), grad_hidden, grad_weight


def log_probabilities(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, indices_M: Tensor) -> Tensor:
    """The targets' log-probabilities at `indices_M` (M,). PyTorch rounds its logits to bfloat16; these stay in float32."""
    if not len(indices_M):
        return torch.zeros(0)
    return _log_probabilities(hidden_ND, weight_VD, targets_N, indices_M, None)[0]


def _log_probabilities(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, indices_M: Tensor, slopes_N: Tensor | None
) -> tuple[Tensor, ...]:
    """Log-probabilities (M,) and slopes (M,) of the targets at `indices_M`; where slopes are given also the gradients of the
    weighted sum by the hidden states there (M, D) and by the weight (V, D).
    """
    (V, D), M = weight_VD.shape, len(indices_M)
    all_rows = len(hidden_ND) == M and M % BLOCK == 0
    padded = M if all_rows else -(-M // BLOCK) * BLOCK
    indices = indices_M if all_rows else torch.cat((indices_M, indices_M.new_zeros(padded - M)))
    with_gradients, slopes_N = slopes_N is not None, torch.zeros(len(hidden_ND)) if slopes_N is None else slopes_N
    hidden, targets, slopes = (x.contiguous() if all_rows else x[indices] for x in (hidden_ND, targets_N, slopes_N))
    if not 0 <= int(targets.min()) <= int(targets.max()) < V:
        raise IndexError(f"a target is not among the {V} tokens")
    if not all_rows:
        slopes[M:] = 0
    vocabulary, V = V, -(-V // BLOCK) * BLOCK
    weight = weight_VD if vocabulary == V else torch.cat((weight_VD, weight_VD[:1].expand(V - vocabulary, D)))
    logp = torch.zeros(padded)
    gradients = (torch.empty_like(hidden), torch.empty_like(weight)) if with_gradients else (None, None)
    library().weighted_log_probability(
        *map(c_long, (padded, D, V, vocabulary, threads())),
        *(None if tensor is None else address(tensor) for tensor in (hidden, weight, targets, slopes, logp, *gradients)),
    )
    grad_hidden, grad_weight = gradients
    return logp[:M], slopes[:M], *(
        () if grad_hidden is None or grad_weight is None else (grad_hidden[:M], grad_weight[:vocabulary])
    )


def can_orthogonalise(shape: tuple[int, ...]) -> bool:
    """Whether `muon` takes matrices of this shape."""
    return len(shape) == 2 and not any(side % BLOCK for side in shape)


class Matrix(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("weight", "momentum", "grad")]


def muon(
    weights: list[Tensor],
    momenta: list[Tensor],
    gradients: list[Tensor],
    momentum: float,
    lr: float,
    decay_factor: float,
    newton_schulz: tuple[tuple[float, float, float], ...],
    function: Callable[..., Any] | None = None,
) -> None:
    """One update by Muon of matrices (rows, columns) of one shape, float32, in place: see `training.optimizer`.

    function: a library's function that computes it; that of `library()` if not given.
    """
    gradients = [gradient.contiguous() for gradient in gradients]
    matrices = (Matrix * len(weights))(*(
        Matrix(*map(address, tensors)) for tensors in zip(weights, momenta, gradients, strict=True)
    ))  # fmt: skip
    coefficients = [coefficient for step in newton_schulz for coefficient in step]
    (function or library().muon)(
        matrices, *map(c_long, (len(weights), *weights[0].shape, threads())),
        *map(c_float, (momentum, lr, decay_factor)), (c_float * len(coefficients))(*coefficients), c_long(len(newton_schulz)),
    )  # fmt: skip


def experts(x_MD: Tensor, ends: list[int], matrices: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Gated MLPs of the tokens (M, D), bfloat16, of which expert i has those up to `ends[i]`: outputs (M, D), and what the
    backward pass needs.

    Each expert's tokens are padded with zeros to a multiple of `BLOCK`. `matrices`, float32: of each expert gate, up (inner, D)
    and down (D, inner). `model.moe` computes the same by PyTorch.
    """
    (M, D), F = x_MD.shape, len(matrices[0])
    spread = (-(-M // 128) | 1) * 128  # as in the C++
    saved = [torch.empty(size, dtype=torch.bfloat16) for size in (6 * len(ends) * D * F, M * 2 * F, spread * F)]
    out = torch.empty_like(x_MD)
    _experts(library().experts, x_MD, ends, matrices, (*saved, out, None, None), [])
    return out, saved


def experts_backward(
    grad_MD: Tensor, x_MD: Tensor, ends: list[int], matrices: list[Tensor], saved: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients by `x_MD` and the matrices, from the gradient by the outputs of `experts` and what it saved."""
    grad_x, gradients = torch.empty_like(x_MD), [torch.empty_like(matrix) for matrix in matrices]
    _experts(library().experts_backward, x_MD, ends, matrices, (*saved, None, grad_MD, grad_x), gradients)
    return grad_x, gradients


def _experts(
    function: Callable[..., Any], x_MD: Tensor, ends: list[int], matrices: list[Tensor], others: tuple[Tensor | None, ...],
    gradients: list[Tensor],
) -> None:  # fmt: skip
    (M, D), F = x_MD.shape, len(matrices[0])
    for tensors, dtype in (((x_MD, *others), torch.bfloat16), ((*matrices, *gradients), torch.float32)):
        if any(tensor is not None and (tensor.dtype != dtype or not tensor.is_contiguous()) for tensor in tensors):
            raise TypeError(f"tokens must be {torch.bfloat16}, matrices {torch.float32}, and both without gaps")
    shapes = {tuple(one.shape) for one in matrices[::3] + matrices[1::3]}, {tuple(one.shape) for one in matrices[2::3]}
    if shapes != ({(F, D)}, {(D, F)}) or len(matrices) != 3 * len(ends) or D % BLOCK or F % BLOCK:
        raise TypeError(f"experts of shapes {shapes} for {D} numbers a token, {len(matrices)} matrices for {len(ends)} experts")
    if any(tensor is not None and tensor.shape != (M, D) for tensor in others[3:]):
        raise TypeError(f"results and gradients must be as many as the {M} x {D} numbers of the tokens")
    if not M or sorted(ends) != list(ends) or ends[0] < 0 or ends[-1] != M or any(end % BLOCK for end in ends):
        raise ValueError(f"{M} tokens cannot be those of experts up to {ends}, in blocks of {BLOCK}")
    expert_array = (Expert * len(ends))(*(
        Expert(*map(address, matrices[3 * i : 3 * i + 3] + (gradients or matrices)[3 * i : 3 * i + 3]), end)
        for i, end in enumerate(ends)
    ))  # fmt: skip
    addresses = (None if tensor is None else address(tensor) for tensor in (x_MD, *others))
    arguments = _Experts(M, D, F, len(ends), threads(), ctypes.cast(expert_array, c_void_p), *addresses)
    function(ctypes.byref(arguments))


class Expert(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("gate", "up", "down", "grad_gate", "grad_up", "grad_down")),
        ("end", c_long),
    ]


class _Experts(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("tokens", "width", "inner", "count", "threads")),
        *((name, c_void_p) for name in ("experts", "x", "packed", "gates", "gated", "out", "grad_out", "grad_x")),
    ]


def address(tensor: Tensor) -> c_void_p:
    """The address of its first element, for the C++; the tensor must outlive the call."""
    return c_void_p(tensor.data_ptr())

"""Memory that one pass leaves to the next: if it were freed, the system would have to clear it before it is used again."""

from typing import NamedTuple

import torch
from torch import Tensor

LINE = 64  # bytes of a cache line


class Memory(NamedTuple):
    buffer: Tensor  # bytes
    numbers: Tensor  # the part to use, from the start of a cache line


_free: list[Tensor] = []


def take(count: int, dtype: torch.dtype) -> Memory:
    """Memory for `count` numbers, not cleared."""
    size = count * dtype.itemsize
    large_enough = [free for free in _free if len(free) >= size + LINE]
    if large_enough:
        buffer = min(large_enough, key=len)
        _free[:] = [free for free in _free if free is not buffer]
    else:
        _free.clear()
        buffer = torch.empty(size + LINE, dtype=torch.uint8)
    start = -buffer.data_ptr() % LINE
    return Memory(buffer, buffer[start : start + size].view(dtype))


def give(memory: Memory) -> None:
    """Leave it to the next `take`."""
    _free.append(memory.buffer)


def release() -> None:
    """Free all memory that no pass holds."""
    _free.clear()

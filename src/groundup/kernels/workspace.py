"""Memory that a pass leaves to the next: what is given back to the system must be cleared when it comes again."""

from typing import NamedTuple

import torch
from torch import Tensor

LINE = 64  # bytes, as the cache has them


class Memory(NamedTuple):
    whole: Tensor  # bytes
    numbers: Tensor  # those asked for, from the start of a line of the cache


_free: list[Tensor] = []


def take(count: int, dtype: torch.dtype) -> Memory:
    """So many numbers, not cleared."""
    size = count * dtype.itemsize
    fitting = [one for one in _free if len(one) >= size + LINE]
    if fitting:
        whole = min(fitting, key=len)
        _free[:] = [one for one in _free if one is not whole]
    else:
        _free.clear()
        whole = torch.empty(size + LINE, dtype=torch.uint8)
    start = -whole.data_ptr() % LINE
    return Memory(whole, whole[start : start + size].view(dtype))


def give(memory: Memory) -> None:
    """For the next to take."""
    _free.append(memory.whole)


def release() -> None:
    """All that no pass holds goes back to the system."""
    _free.clear()

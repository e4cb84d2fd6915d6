"""What comes before damage in a compressed file is read, and the damage is told, never taken for the end."""

import bz2
import gzip
import io
import lzma
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.data import streams

PACKERS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
TEXT = "\n".join(f"line {number} {random.Random(number).random()}" for number in range(4000)).encode()


def read(content: bytes, packing: str, size: int) -> tuple[bytes, bool]:
    """All that is read, `size` bytes at a time, and whether damage was told."""
    stream, found = streams.unpacked(io.BytesIO(content), packing), b""
    while True:
        try:
            piece = stream.read(size)
        except (OSError, EOFError):
            return found, True
        if not piece:
            return found, False
        found += piece


@pytest.mark.parametrize("packing", PACKERS)
@given(st.lists(st.binary(max_size=3000), max_size=5), st.sampled_from([7, 1 << 16, -1]), st.integers(0, 600))
def test_members_one_after_another_and_padding(packing, members, size, zeros):
    packed = b"".join(map(PACKERS[packing], members)) + bytes(zeros * bool(members))
    assert read(packed, packing, size) == (b"".join(members), False)


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("size", [100, 1 << 20, -1])
def test_garbage_behind_costs_nothing_and_is_told(packing, size):
    half = len(TEXT) // 2
    packed = PACKERS[packing](TEXT[:half]) + PACKERS[packing](TEXT[half:])
    assert read(packed + b"garbage behind", packing, size) == (TEXT, True)
    broken = PACKERS[packing](TEXT[:half]) + b"X" + PACKERS[packing](TEXT[half:])[1:]
    assert read(broken, packing, size) == (TEXT[:half], True)


@pytest.mark.parametrize("packing", PACKERS)
def test_the_whole_of_a_damaged_file_is_refused(packing):
    packed = PACKERS[packing](TEXT)
    assert streams.read_all(streams.unpacked(io.BytesIO(packed), packing), len(TEXT) + 1) == TEXT
    for damaged in (packed[:-3], packed + b"garbage"):
        with pytest.raises((OSError, EOFError)):
            streams.read_all(streams.unpacked(io.BytesIO(damaged), packing), len(TEXT) + 1)


@pytest.mark.parametrize("packing", PACKERS)
@given(st.data())
def test_cut_anywhere_it_gives_a_beginning_and_says_so(packing, data):
    parts = [TEXT[:20_000], TEXT[20_000:40_000]]
    packed = [PACKERS[packing](part) for part in parts]
    cut = data.draw(st.integers(1, sum(map(len, packed)) - 1))
    found, told = read(b"".join(packed)[:cut], packing, 1 << 16)
    assert b"".join(parts).startswith(found) and len(found) >= (len(parts[0]) if cut >= len(packed[0]) else 0)
    assert told or cut == len(packed[0])

import random
import shutil
import subprocess

import pytest

from groundup.core.errors import UserError
from groundup.evaluation.xz_baseline import xz_bits_per_byte


def test_repetition_is_cheap_and_noise_is_not():
    assert xz_bits_per_byte(b"the cat sat on the mat. " * 4000) < 0.05
    assert 8.0 < xz_bits_per_byte(random.Random(0).randbytes(20_000)) < 8.1


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz program is not installed")
def test_equals_the_xz_program():
    data = "".join(random.Random(0).choices(["the ", "cat ", "sat ", "mat\n"], k=20_000)).encode()
    # One thread: with more, xz 5.6 notes sizes in the header of each block, a few bytes that are not compression.
    packed = subprocess.run(["xz", "-9e", "-T1", "-c"], input=data, capture_output=True, check=True).stdout
    assert xz_bits_per_byte(data) == 8 * len(packed) / len(data)


def test_nothing_to_compress():
    with pytest.raises(UserError, match="empty"):
        xz_bits_per_byte(b"")

"""How far a general compressor gets: the bits per byte of xz, a baseline without knowledge of language."""

import lzma

from groundup.core.errors import UserError


def xz_bits_per_byte(data: bytes) -> float:
    """Size of `data` under `xz -9e`, container included, in bits for each byte. Raises UserError when it is empty."""
    if not data:
        raise UserError("nothing to compress: the text is empty")
    packed = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC64, 9 | lzma.PRESET_EXTREME)
    return 8 * len(packed) / len(data)

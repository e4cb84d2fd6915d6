"""Text split where every pre-tokenization pattern splits, without regular expressions, into pieces that recur often.

A single space between two visible characters begins a pre-token under each of our patterns, and so does a visible
character after a line end. The text before and after such an offset never changes what the patterns do on the other
side. So a text cut there gives pieces whose pre-tokens, and whose ids, can be computed once for each distinct piece:
a textbook of 10 million words has half a million. Finding the offsets is arithmetic on bytes (numpy), and finding equal
pieces is one hash table (Arrow): both are fast, and both release the interpreter lock.
"""

import numpy as np
import pyarrow as pa

_SPACE, _LINE_END, _TAB = 32, 10, 9
# Every character that some library counts as white space (Unicode's White_Space, Python's separators, and the former U+180E).
# One too many only makes pieces longer.
_WHITE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_VISIBLE, _BLANK, _PERHAPS = 0, 1, 2


def _code(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """A character of two or three bytes as one number."""
    third = np.where(first < 0xE0, 0, third)
    return (first.astype(np.int32) << 16) | (second.astype(np.int32) << 8) | third


def _tables() -> tuple[np.ndarray, np.ndarray]:
    kinds, codes = np.zeros(256, np.uint8), []
    for character in _WHITE:
        first, *rest = character.encode()
        kinds[first] = _PERHAPS if rest else _BLANK
        if rest:
            codes.append((first << 16) | (rest[0] << 8) | (rest[1] if len(rest) > 1 else 0))
    return kinds, np.array(sorted(codes), np.int32)


_KINDS, _CODES = _tables()


def cut(documents: pa.Array) -> tuple[pa.LargeBinaryArray, np.ndarray]:
    """Pieces of a batch of documents (an Arrow array of strings), and the index of the first piece of each document.

    The second is (documents + 1,) int64: document i is the pieces from its entry i to its entry i + 1. Nulls are empty documents.
    """
    documents = documents.fill_null("").cast(pa.large_binary())
    starts = np.frombuffer(documents.buffers()[1], np.int64)[documents.offset :][: len(documents) + 1]
    content = documents.buffers()[2]
    size = int(starts[-1] - starts[0])
    if not size:
        return pa.array([], pa.large_binary()), np.zeros(len(documents) + 1, np.int64)
    content = content.slice(int(starts[0]), size)
    starts = starts - starts[0]
    data = np.frombuffer(content, np.uint8)
    is_start = np.zeros(size + 1, bool)
    is_start[starts] = True  # and the end

    spaces = np.flatnonzero(data == _SPACE)
    before = data[spaces - 1]  # for a space at 0 an unrelated byte: 0 is a start anyway
    spaces = spaces[(before != _SPACE) & (before != _TAB) & ~is_start[spaces + 1]]
    after_lines = np.flatnonzero(data == _LINE_END) + 1
    after_lines = after_lines[~is_start[after_lines]]
    is_start[spaces[_visible(data, spaces + 1)]] = True
    is_start[after_lines[_visible(data, after_lines)]] = True
    offsets = np.flatnonzero(is_start)
    buffers = [None, pa.py_buffer(offsets), content]
    pieces = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    return pieces, np.searchsorted(offsets, starts)


def _visible(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether a character other than white space begins at each of the offsets (none is the end of a document)."""
    kinds = _KINDS[data[offsets]]
    undecided = np.flatnonzero(kinds == _PERHAPS)
    undecided_offsets = offsets[undecided]
    codes = _code(data[undecided_offsets], data[undecided_offsets + 1], data[np.minimum(undecided_offsets + 2, len(data) - 1)])
    kinds[undecided] = np.isin(codes, _CODES)
    return kinds == _VISIBLE

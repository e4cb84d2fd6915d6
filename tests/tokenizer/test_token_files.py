import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data.token_files import TokenFile, dtype_for, write

SEQUENCES = [np.array([1, 2, 3]), np.array([], np.int64), np.array([65535, 0])]


def independent_reader(stem):
    """The Megatron-LM layout, read field by field."""
    index = stem.with_name(stem.name + ".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    (version,) = struct.unpack("<Q", index[9:17])
    (code,) = struct.unpack("<B", index[17:18])
    count, documents = struct.unpack("<QQ", index[18:34])
    lengths = struct.unpack(f"<{count}i", index[34 : 34 + 4 * count])
    pointers = struct.unpack(f"<{count}q", index[34 + 4 * count : 34 + 12 * count])
    firsts = struct.unpack(f"<{documents}q", index[34 + 12 * count :])
    assert version == 1 and firsts == tuple(range(count + 1))
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    data = stem.with_name(stem.name + ".bin").read_bytes()
    return [
        list(struct.unpack(f"<{length}{letter}", data[at : at + length * size]))
        for length, at in zip(lengths, pointers, strict=True)
    ]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_layout_is_megatrons(tmp_path, dtype):
    stem = tmp_path / "train.best"
    write(stem, iter(SEQUENCES), dtype)
    assert independent_reader(stem) == [sequence.tolist() for sequence in SEQUENCES]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.best.bin", "train.best.idx"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=9), max_size=9))
def test_round_trip(tmp_path_factory, documents):
    stem = tmp_path_factory.mktemp("tokens") / "train"
    write(stem, (np.array(document, np.int64) for document in documents), np.uint16)
    file = TokenFile(stem)
    assert len(file) == len(documents)
    assert [file[i].tolist() for i in range(len(file))] == documents
    assert file.lengths.tolist() == [len(document) for document in documents]
    assert file.tokens.tolist() == [token for document in documents for token in document]


def test_number_types():
    assert dtype_for(65536) == np.uint16 and dtype_for(65537) == np.int32


def test_an_id_that_does_not_fit_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="sequence 1 holds an id"):
        write(tmp_path / "train", [np.array([1]), np.array([65536])], np.uint16)
    assert list(tmp_path.iterdir()) == []


def test_a_rewrite_that_fails_leaves_no_index_to_believe(tmp_path):
    write(tmp_path / "train", SEQUENCES, np.uint16)
    with pytest.raises(ValueError):
        write(tmp_path / "train", [np.array([-1])], np.uint16)
    with pytest.raises(UserError, match="no such file"):
        TokenFile(tmp_path / "train")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def put(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda bin_path, idx_path: bin_path.unlink(),
        lambda bin_path, idx_path: cut(bin_path, 9),
        lambda bin_path, idx_path: cut(bin_path, 0),
        lambda bin_path, idx_path: put(bin_path, 10, b"more"),
        lambda bin_path, idx_path: cut(idx_path, 0),
        lambda bin_path, idx_path: cut(idx_path, 30),
        lambda bin_path, idx_path: cut(idx_path, -8),
        lambda bin_path, idx_path: put(idx_path, 0, b"X"),
        lambda bin_path, idx_path: put(idx_path, 9, b"\2"),  # version
        lambda bin_path, idx_path: put(idx_path, 17, b"\5"),  # number type not ours
        lambda bin_path, idx_path: put(idx_path, 17, b"\4"),  # int32 over uint16 ids
        lambda bin_path, idx_path: put(idx_path, 18, b"\4"),  # sequences
        lambda bin_path, idx_path: put(idx_path, 34, b"\2"),  # a length
        lambda bin_path, idx_path: put(idx_path, 34, b"\xff" * 4),  # a negative one
        lambda bin_path, idx_path: put(idx_path, 34 + 12, b"\2"),  # a pointer
        lambda bin_path, idx_path: put(idx_path, 34 + 36, b"\1"),  # a document
    ],
)
def test_damage_is_refused(tmp_path, damage):
    write(tmp_path / "train", SEQUENCES, np.uint16)
    damage(tmp_path / "train.bin", tmp_path / "train.idx")
    with pytest.raises(UserError, match="make the token files again"):
        TokenFile(tmp_path / "train")

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core import seals
from groundup.core.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "seal"), VALUES, max_size=4), st.data())
def test_a_sealed_object_reads_as_it_was_or_not_at_all(tmp_path_factory, value, data):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    seals.write_sealed(path, value)
    plain = json.loads(json.dumps(value))
    assert seals.read_sealed(path) == plain
    content = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    harmed = bytearray(content)
    harmed[place] ^= 1 << bit
    path.write_bytes(harmed if data.draw(st.booleans()) else content[:place])
    assert seals.read_sealed(path) in (None, plain)


@pytest.mark.parametrize("harm", [lambda c: c[:-1], lambda c: c[:3] + b"x" + c[4:], lambda c: b""])
def test_a_file_is_sealed_until_it_or_its_seal_changes(tmp_path, harm, capsys):
    path = tmp_path / "a.bin"
    path.write_bytes(b"some content")
    assert not seals.is_sealed(path) and capsys.readouterr().err == ""
    seals.seal(path)
    assert seals.is_sealed(path)
    beside = tmp_path / "a.bin.seal"
    for one in (path, beside):
        before = one.read_bytes()
        one.write_bytes(harm(before))
        assert not seals.is_sealed(path) and "a.bin is damaged: made again" in capsys.readouterr().err
        one.write_bytes(before)
    assert seals.is_sealed(path)


def test_a_file_of_nobodys_stage_passes(tmp_path):
    (tmp_path / "[a]*.txt").write_text("x")
    assert seals.checked(tmp_path / "[a]*.txt") == tmp_path / "[a]*.txt"


def test_only_the_file_that_is_read_is_checked(tmp_path):
    outputs = {name: seals.digest(tmp_path / name) for name in ("[a]", "a") if (tmp_path / name).write_text(name)}
    seals.write_sealed(
        tmp_path / "stage.json",
        {"stage": "s", "key": {}, "outputs": outputs, "digest": "", "seconds": 0, "results": {}},
    )
    (tmp_path / "a").write_text("b")
    seals.checked(tmp_path / "[a]")
    with pytest.raises(UserError, match=r"a was altered since stage s made it"):
        seals.checked(tmp_path / "a")

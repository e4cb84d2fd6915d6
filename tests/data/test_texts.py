"""Texts in memory, as files that all readers take."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.text import well_formed
from groundup.data import texts_in_memory
from groundup.data.readers import Refused


@given(st.lists(st.text(st.characters(), max_size=5) | st.none() | st.integers() | st.just(Path("some/file.txt")), max_size=6))
@example(["\ud800", " ", "b", None, Path("~/a")])
def test_every_item_is_a_path_a_text_or_counted(tmp_path_factory, items):
    made, refused = tmp_path_factory.mktemp("texts") / "texts.parquet", Refused()
    try:
        files = texts_in_memory.as_files(iter(items), made, refused)
    except UserError:
        files = []
    good = [well_formed(one) for one in items if isinstance(one, str) and one.strip()]
    assert (pq.read_table(made)["text"].to_pylist() if made in files else []) == good
    assert len(good) + refused.total() + sum(isinstance(one, Path) for one in items) == len(items)
    assert bool(files) == (bool(good) or any(isinstance(one, Path) for one in items))


def test_the_bytes_are_the_same_and_no_list_is_held(tmp_path):
    made = []
    for name in ("a", "b"):
        texts_in_memory.as_files((f"text {n}" for n in range(3 * texts_in_memory.BATCH_TEXTS + 7)), tmp_path / name, Refused())
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] and pq.ParquetFile(tmp_path / "a").num_row_groups == 4


@pytest.mark.parametrize("wrong", ["a text", b"bytes", 3, None])
def test_what_is_no_list_is_refused(wrong, tmp_path):
    with pytest.raises(UserError, match="texts: "):
        texts_in_memory.as_files(wrong, tmp_path / "made", Refused())

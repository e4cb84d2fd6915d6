"""Documents to token files: sides, order, and a table of what stands where."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.data.readers import Refused
from groundup.data.token_files import TokenFile
from groundup.tokenizer import documents, token_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy_corpus import tokenizer

ROWS = [{"id": str(n), "text": f"the path {n}é " * n, "domain": "ab"[n % 2], "best": n == 3} for n in range(7)]


@pytest.mark.parametrize("batch", [2, 1024])
def test_files_and_table(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(token_folder, "BATCH", batch)
    sizes = token_folder.write(tmp_path, {"train": iter(ROWS[2:]), "held_out": ROWS[:2]}, tokenizer(), threads=2)
    files = {split: TokenFile(tmp_path / split) for split in sizes}
    table = pq.read_table(tmp_path / token_folder.TABLE).to_pylist()
    assert [row["id"] for row in table] == ["2", "3", "4", "5", "6", "0", "1"]
    for row, source in zip(table, ROWS[2:] + ROWS[:2], strict=True):
        ids = files[row["split"]][row["place"]]
        assert np.array_equal(ids, [tokenizer().end_of_text, *tokenizer().encode(source["text"])])
        assert (row["tokens"], row["bytes"], row["best"]) == (len(ids), len(source["text"].encode()), source["best"])
    assert sizes["train"]["tokens"] == len(files["train"].tokens) and sizes["held_out"]["documents"] == 2


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), st.floats(0, 1))
def test_each_text_is_on_one_side_and_copies_on_the_same(tmp_path_factory, texts, share):
    path = tmp_path_factory.mktemp("sides") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shards = documents.find([path])
    sides = (documents.read_sides(shards, side, share, Refused()) for side in ("train", "held_out"))
    train, held_out = ([row["text"] for row in side] for side in sides)
    assert sorted(train + held_out) == sorted(texts) and not set(train) & set(held_out)
    if share == 0:
        assert not held_out


def test_what_a_file_says_of_its_sides_holds(tmp_path):
    kinds = [(split, best) for split in ("train", "test", "held_out") for best in (True, False)]
    rows = [{"text": f"{split} {best}", "split": split, "best": best} for split, best in kinds]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = documents.find([tmp_path / "a.jsonl"])
    train, held_out = (list(documents.read_sides(shards, side, 0.5, Refused())) for side in ("train", "held_out"))
    assert [(row["text"], row["best"]) for row in train] == [("train True", True), ("train False", False)]
    assert len(held_out) == 4

"""What the join and the choice of documents hold grows by so many bytes a document, and no more: 1 GB for a million."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.corpus import ids
from groundup.corpus.annotate import corpus_pass
from groundup.corpus.dedup import duplicates, resolve
from groundup.corpus.dedup.boilerplate_lines import template_lines
from groundup.corpus.dedup.decontamination import contamination


def growth(work, count):
    """Bytes that the peak is higher by for each of `count` to 4 * `count`."""
    work(count)  # once: what it imports and compiles is not counted

    def peak(size):
        tracemalloc.start()
        work(size)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    return (peak(4 * count) - peak(count)) / (3 * count)


def test_finding_copies(tmp_path, monkeypatch):
    # Comparing signatures has a bound of its own, memory_mb: `test_memory_bounds_what_is_held_at_a_time`.
    monkeypatch.setattr(duplicates, "near_duplicate_pairs", lambda blocks, *_: (block[:0, :2] for block in blocks))

    def work(count):
        generator = np.random.default_rng(0)
        names, keys = generator.integers(0, 2**63, (2, count, 2)).astype(np.uint64)
        keys[1::10] = keys[::10][: len(keys[1::10])]
        documents = resolve.Documents(names, keys, np.full(count, 400), np.ones(count, dtype=bool), names)
        blocks = [np.zeros((1000, 2), dtype=np.uint32)] * (count // 1000)
        urls = generator.integers(0, 2**63, count).astype(np.uint64)
        resolve.find_copies(documents, urls, lambda: iter(blocks), 2, 0.7, tmp_path)

    assert growth(work, 10_000) < 250  # with ids as bytes, four columns of them: 402


def test_clusters_of_many_pairs():
    def work(count):
        chain = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
        assert not duplicates.clusters(count, [chain[::-1], chain]).any()

    assert growth(work, 50_000) < 100  # pairs as lists were 136 bytes, and each number of them 32


def test_template_lines_of_one_large_host():
    def work(count):
        values = np.random.default_rng(0).integers(1, 2**63, 10 * count).astype(np.uint64)
        values[::10] = 5
        _, found = template_lines(values, np.full(count, 10), np.ones(count, dtype=bool), 0.3)
        assert not found.any() and len(found) == count

    assert growth(work, 2000) / 10 < corpus_pass.LINE_BYTES


def test_contamination():
    words = [f"w{number}" for number in range(100)]

    def text(number):
        return " ".join(words[place] for place in np.random.default_rng(number).integers(0, 100, 20))

    def work(count):
        found = contamination(map(text, range(10)), map(text, range(10, count)))
        assert sum(share > 0 for share, _ in found) == 0

    assert growth(work, 100) < 60


def test_contamination_looks_only_at_what_a_text_shares(monkeypatch):
    """Not at all held-out texts for each of the others: that would take the square of the corpus."""
    held = [" ".join(f"h{number}x{place}" for place in range(20)) for number in range(40)]
    sizes = []
    monkeypatch.setattr(np, "bincount", lambda *args, real=np.bincount, **kw: sizes.append(1) or real(*args, **kw))
    first = list(contamination(held, held[:4]))
    few = len(sizes)
    assert first == [(1.0, number) for number in range(4)]
    list(contamination(held, held))
    assert len(sizes) == 2 * few


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20), st.integers(0, 20))
def test_ids_as_numbers_are_the_same_ids_in_the_same_order(names, start):
    strings = [name.hex() for name in names]
    numbers = ids.from_hex(pa.array(strings, pa.string()))
    assert ids.to_hex(numbers).to_pylist() == strings
    assert np.array_equal(ids.from_hex(pa.array(strings, pa.string()).slice(start)), numbers[start:])
    assert np.array_equal(ids.from_hex(pa.chunked_array([strings[:start], strings[start:]], pa.string())), numbers)
    order = np.lexsort((numbers[:, 1], numbers[:, 0]))
    assert [strings[place] for place in order] == sorted(strings)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), min_size=1, max_size=3))
def test_what_is_no_id_is_refused(names):
    with pytest.raises(ValueError, match=r"hexadecimal|digit"):
        ids.from_hex(pa.array(names, pa.string()))


def test_an_earlier_corpus_with_other_ids_is_refused_by_name(tmp_path):
    row = {"id": "a", "cluster": "a", "text_key_0": 1, "text_key_1": 2, "length": 3, "signed": True, "signature": [1] * 16}
    table = pa.Table.from_pylist([row], schema=resolve._schema(16))
    pq.write_table(table, tmp_path / resolve.FILE)
    none = np.zeros((0, 2), dtype=np.uint64)
    new = resolve.Documents(none, none, np.zeros(0, int), np.zeros(0, bool), none)
    with pytest.raises(UserError, match=r"signatures.parquet: ids are 32 hexadecimal digits"):
        resolve.find_copies(new, np.zeros(0, np.uint64), lambda: iter(()), 16, 0.7, tmp_path, [tmp_path])

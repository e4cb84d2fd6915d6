from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.words import split
from groundup.corpus import ids
from groundup.corpus.dedup import resolve
from groundup.corpus.dedup.duplicates import signature, text_key, url_hash

PERMUTATIONS = 128
COLUMNS = ("same_url_as", "duplicate_of", "near_duplicate_of", "cluster")


def prose(seed, count=80):
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 5000, count))


def hexes(names):
    """Ids that begin with these names."""
    return ids.from_hex(pa.array([name.encode().hex().ljust(32, "0") for name in names], pa.string()))


def called(found, column):
    rows = getattr(found, column)
    named = ids.to_hex(found.ids_of(column)[rows], rows >= 0).to_pylist()
    return [name and bytes.fromhex(name).rstrip(b"\0").decode() for name in named]


def find(texts, out, urls=None, prefix="n", memory_mb=64, permutations=PERMUTATIONS, **options):
    """Copies among texts called n00, n01, ... of one address each."""
    names = [f"{prefix}{number:02d}" for number in range(len(texts))]
    signatures = [signature(split(text), permutations) for text in texts]
    blank = np.zeros(permutations, dtype=np.uint32)
    block = (
        np.stack([blank if found is None else found for found in signatures]) if texts else np.zeros((0, permutations))
    )
    numbers = hexes(names)
    new = resolve.Documents(
        numbers,
        resolve.keys_from_hex([text_key(split(text)) for text in texts]),
        np.array([len(text) for text in texts], dtype=np.int64),
        np.array([found is not None for found in signatures], dtype=bool),
        numbers,
    )
    out.mkdir(exist_ok=True)
    urls = urls or [f"https://a.org/{name}" for name in names]
    blocks = np.array_split(block, 3)
    hashes = np.array([url_hash(url) for url in urls], dtype=np.uint64)
    found = resolve.find_copies(new, hashes, lambda: iter(blocks), permutations, 0.7, out, memory_mb=memory_mb, **options)
    return SimpleNamespace(**{column: called(found, column) for column in COLUMNS})


def test_one_of_each_group_stays(tmp_path):
    near = prose(1) + " more"
    texts = [prose(1), near, prose(1), prose(2), "---- ====", prose(3), "----  ===="]
    urls = [f"https://a.org/{number}" for number in range(6)] + ["https://a.org/3?utm_source=x"]
    found = find(texts, tmp_path, urls)
    assert found.duplicate_of == [None, None, "n00", None, "n06", None, None]  # the longer one, then the least id
    assert found.near_duplicate_of == ["n01", None, None, None, None, None, None]  # of exact copies only the first
    assert found.same_url_as == [None, None, None, None, None, None, "n03"]
    assert found.cluster == ["n01", "n01", "n01", "n03", "n06", "n05", "n06"]


def test_no_documents(tmp_path):
    assert vars(find([], tmp_path)) == {column: [] for column in COLUMNS}


def test_against_an_earlier_corpus(tmp_path):
    january = find([prose(1), prose(1) + " more", prose(2)], tmp_path / "january", prefix="j")
    assert january.near_duplicate_of == ["j01", None, None]
    # Longer than what it repeats, which stays all the same; and two that are nearly equal to each other.
    texts = [prose(2), prose(1) + " much more", prose(3), prose(3) + " end", prose(4)]
    urls = [f"https://a.org/j{number:02d}" for number in range(5)]  # addresses of january, fetched again
    february = find(texts, tmp_path / "february", urls, prefix="f", against=[tmp_path / "january"])
    assert february.duplicate_of == ["j02", None, None, None, None]
    assert february.near_duplicate_of == [None, "j01", "f03", None, None]
    assert february.same_url_as == [None] * 5
    assert february.cluster == ["j02", "j01", "f03", "f03", "f04"]
    # February remembers that what it has of january stays there.
    march = find([prose(1) + " much more", prose(4)], tmp_path / "march", prefix="m", against=[tmp_path / "february"])
    assert march.duplicate_of == ["f01", "f04"] and march.cluster == ["j01", "f04"]


def test_signatures_of_other_settings_are_refused(tmp_path):
    find([prose(1)], tmp_path / "a", permutations=64)
    with pytest.raises(UserError, match="signatures of another kind"):
        find([prose(1)], tmp_path / "b", against=[tmp_path / "a"])
    with pytest.raises(UserError, match="no signatures"):
        find([prose(1)], tmp_path / "b", against=[tmp_path / "b" / "nowhere"])


def test_signatures_are_the_same_bytes_each_time(tmp_path):
    texts = [prose(seed % 4) for seed in range(9)]
    for name, memory in (("a", 64), ("b", 1)):
        find(texts, tmp_path / name, memory_mb=memory)
    assert (tmp_path / "a" / resolve.FILE).read_bytes() == (tmp_path / "b" / resolve.FILE).read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12))
def test_every_group_keeps_exactly_one(tmp_path_factory, chosen):
    """Texts of few kinds, with 0 to 2 words more, at few addresses: what is dropped is dropped for what comes before."""
    texts = [prose(kind) + " more" * extra for kind, extra, _ in chosen]
    urls = [f"https://a.org/{address}" for *_, address in chosen]
    found = find(texts, tmp_path_factory.mktemp("out"), urls)
    rank = {f"n{number:02d}": (-len(text), number) for number, text in enumerate(texts)}
    for name, *others in zip(rank, found.same_url_as, found.duplicate_of, found.near_duplicate_of, strict=True):
        assert all(other is None or rank[other] < rank[name] for other in others)
    kept = {
        kind
        for (kind, *_), *others in zip(chosen, found.duplicate_of, found.near_duplicate_of, strict=True)
        if others == [None, None]
    }
    stay = [
        others for others in zip(found.duplicate_of, found.near_duplicate_of, strict=True) if others == (None, None)
    ]
    assert kept == {kind for kind, *_ in chosen} and len(stay) == len(kept)

"""Duplicates between documents: of one address, of the same words, and of nearly the same.

Near duplicates by MinHash (Broder 1997) over word 5-grams, of characters in scripts without spaces (`words.py`), with
banded locality-sensitive hashing, as in GPT-3, Gopher and FineWeb; candidates are checked against the estimate from
their full signatures, then joined by union-find. The bands are sorted, and the candidates checked, in parts that fit the
memory they are given; the rest waits on disk, 768 bytes a document at 128 permutations. `resolve.py` says which document
of a group stays; from which similarity on two are near duplicates is `near_duplicate_jaccard` in `corpus/config.py`.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
from rensa import RMinHash

from groundup.core.words import MULTIPLIER, Words, ngrams
from groundup.corpus.urls import canonical

SHINGLE_WORDS = 5
MINHASH_SEED = 1
LEAST_RECALL = 0.99  # of the bands, for a pair exactly at the threshold
ALL_PAIRS_BUCKET = 64
SORTING_BYTES = 48  # of memory a document, while one band is sorted
BLOCK_BYTES = 16  # of memory a number of a signature: two blocks at a time fill half of it
CHECKED_AT_ONCE = 1 << 13  # pairs of signatures
JOINED_AT_ONCE = 1 << 16  # pairs of documents
CAMPAIGN = re.compile(r"(?:^|&)(?:utm_\w+|fbclid|gclid|msclkid|mc_[ce]id)=[^&]*")


def url_key(url: str) -> str:
    """Equal for addresses that name the same page: scheme, `www.`, last slash and marks of campaigns left out."""
    address = canonical(url)
    if address is None:  # not of the web
        return url
    place, _, query = address.partition("://")[2].removeprefix("www.").partition("?")
    return f"{place.rstrip('/')}?{CAMPAIGN.sub('', query).lstrip('&')}"


def url_hash(url: str) -> int:
    """64 bits of a digest of `url_key`."""
    return int.from_bytes(blake2b(url_key(url).encode(), digest_size=8).digest(), "little")


def text_key(words: Words) -> str:
    """Equal for texts that differ in white space only."""
    return blake2b(" ".join(words.raw).encode(), digest_size=16).hexdigest()


def shingles(words: Words, n: int) -> np.ndarray:
    """Hashes of the word n-grams, uint64, sorted, unique; a shorter text is one shingle, one without words has none."""
    return np.unique(_ngrams(words, n))


def _ngrams(words: Words, n: int) -> np.ndarray:
    return ngrams(words.hashes, min(n, len(words.hashes)))


def signature(words: Words, permutations: int) -> np.ndarray | None:
    """uint32 [permutations], or None for a text without words. Equal places estimate the Jaccard similarity."""
    found = _ngrams(words, SHINGLE_WORDS)
    if not len(found):
        return None
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(found, [0, len(found)], permutations, MINHASH_SEED)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def rows_per_band(permutations: int, jaccard: float) -> int:
    """The most rows a band can have and still find pairs at this similarity: 1 - (1 - jaccard^rows)^bands >= 0.99."""
    fits = [
        rows for rows in range(1, permutations + 1) if 1 - (1 - jaccard**rows) ** (permutations // rows) >= LEAST_RECALL
    ]
    return max(fits, default=1)


def near_duplicate_pairs(
    signatures: Iterable[np.ndarray], jaccard: float, memory_mb: int = 256, folder: Path | None = None
) -> Iterator[np.ndarray]:
    """Pairs of documents estimated to be so similar: blocks of int64 [pairs, 2], first < second, sorted in each block.

    `signatures` are blocks of uint32 [documents, permutations]; the documents are numbered through. A pair may be in
    several blocks. At most `memory_mb` is used beside the blocks, and a folder inside `folder` for what does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="near-duplicates-", dir=folder) as name:
        spill = Path(name)
        documents, permutations, bands = _spill(signatures, jaccard, spill)
        block = max(1, (memory_mb << 20) // (BLOCK_BYTES * max(1, permutations)))
        parts = -(-documents * SORTING_BYTES // (memory_mb << 20))
        for band in range(bands):
            for part in range(parts):
                for codes in _candidates(*_sorted_keys(spill / f"band-{band}", part, parts), documents):
                    _append_pairs(codes, documents, block, spill)
            (spill / f"band-{band}").unlink()
        for first in range(0, documents, block):
            left = _read_signatures(spill, first, block, permutations)
            for second in range(first, documents, block):
                path = spill / f"pairs-{first}-{second}"
                if not path.exists():
                    continue
                right = left if second == first else _read_signatures(spill, second, block, permutations)
                with path.open("rb") as file:
                    while len(codes := np.fromfile(file, np.int64, (memory_mb << 20) // 128)):
                        pairs = np.stack(np.divmod(np.unique(codes), documents), axis=1)
                        yield pairs[_similar(left, right, pairs - (first, second), jaccard)]


def _spill(signatures: Iterable[np.ndarray], jaccard: float, spill: Path) -> tuple[int, int, int]:
    """Write the signatures, and of each band the keys of all documents; returns documents, permutations, bands."""
    documents = permutations = rows = 0
    with (spill / "signatures").open("wb") as file:
        for block in signatures:
            documents, permutations = documents + len(block), block.shape[1]
            rows = rows_per_band(permutations, jaccard)
            block.astype("<u4").tofile(file)
            for band in range(permutations // rows):
                # Equal bands have equal keys; bands that collide by chance fail the check of the whole signature.
                keys = np.zeros(len(block), dtype=np.uint64)
                for column in range(band * rows, (band + 1) * rows):
                    keys = keys * MULTIPLIER + block[:, column]
                with (spill / f"band-{band}").open("ab") as out:
                    keys.tofile(out)
    return documents, permutations, permutations // rows if documents else 0


def _sorted_keys(path: Path, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys of one part of a band in order, and the documents they are of; equal keys are in the same part."""
    keys, documents, start = [], [], 0
    with path.open("rb") as file:
        while len(block := np.fromfile(file, np.uint64, 1 << 20)):
            chosen = np.flatnonzero(block % np.uint64(parts) == part) if parts > 1 else np.arange(len(block))
            keys.append(block[chosen])
            documents.append(chosen + start)
            start += len(block)
    found, owners = np.concatenate(keys), np.concatenate(documents)
    order = np.argsort(found, kind="stable")
    return found[order], owners[order]


def _candidates(keys: np.ndarray, owners: np.ndarray, documents: int) -> Iterator[np.ndarray]:
    """Pairs with equal keys, each as first * documents + second. A large bucket is a chain and a star."""
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    sizes = np.diff(edges)
    ends = np.repeat(edges[1:], sizes)
    large = np.repeat(sizes > ALL_PAIRS_BUCKET, sizes)
    places = np.flatnonzero(np.arange(1, len(keys) + 1) < ends)  # the next one is in the same bucket
    for distance in range(1, ALL_PAIRS_BUCKET):
        yield owners[places] * documents + owners[places + distance]
        places = places[(places + distance + 1 < ends[places]) & ~large[places]]
        if not len(places):
            break
    stars = np.flatnonzero(large)
    heads = np.repeat(edges[:-1], sizes)[stars]
    yield (owners[heads] * documents + owners[stars])[stars != heads]


def _append_pairs(codes: np.ndarray, documents: int, block: int, spill: Path) -> None:
    """To the file of the two blocks of signatures that the pair lies in."""
    where = codes // documents // block * documents + codes % documents // block
    order = np.argsort(where, kind="stable")
    blocks, starts = np.unique(where[order], return_index=True)
    for name, part in zip(blocks.tolist(), np.split(codes[order], starts[1:]), strict=False):
        first, second = divmod(name, documents)
        with (spill / f"pairs-{first * block}-{second * block}").open("ab") as file:
            part.tofile(file)


def _read_signatures(spill: Path, start: int, count: int, permutations: int) -> np.ndarray:
    with (spill / "signatures").open("rb") as file:
        file.seek(start * permutations * 4)
        return np.fromfile(file, "<u4", count * permutations).reshape(-1, permutations)


def _similar(left: np.ndarray, right: np.ndarray, pairs: np.ndarray, jaccard: float) -> np.ndarray:
    parts = np.array_split(pairs, len(pairs) // CHECKED_AT_ONCE + 1)
    return np.concatenate([(left[part[:, 0]] == right[part[:, 1]]).mean(axis=1) >= jaccard for part in parts])


def clusters(count: int, pairs: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [count]: for each document the smallest document it is joined to by blocks of pairs, directly or not."""
    parent = np.arange(count)
    for block in pairs:
        for edges in np.array_split(block, len(block) // JOINED_AT_ONCE + 1):
            while len(edges := _roots(parent, edges)):
                np.minimum.at(parent, edges[:, 1], edges[:, 0])
    return _roots_of(parent, np.arange(count))


def _roots(parent: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The edges between different trees, from root to root: the smaller one first."""
    ends = np.sort(_roots_of(parent, edges.reshape(-1)).reshape(-1, 2), axis=1)
    return ends[ends[:, 0] != ends[:, 1]]


def _roots_of(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The root of each node's tree, which is its smallest document; afterwards it is the parent of each of `nodes`."""
    above = parent[nodes]
    while len(deep := np.flatnonzero(parent[above] != above)):
        # Each is then twice as far up as before, where its parents are among the nodes: a long chain takes few rounds.
        parent[nodes[deep]] = above[deep] = parent[above[deep]]
    return above

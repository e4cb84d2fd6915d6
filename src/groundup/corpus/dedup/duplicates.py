"""Duplicates between documents: by URL, by the same words, and near duplicates.

Near duplicates by MinHash (Broder 1997) over word 5-grams, of characters in scripts without spaces (`words.py`), with
banded locality-sensitive hashing, as in GPT-3, Gopher and FineWeb; candidates are checked against the estimate from
their full signatures, then joined by union-find. The bands are sorted, and the candidates checked, in parts that fit the
given memory; the rest is on disk, 768 bytes per document at 128 permutations. `resolve.py` decides which document of a
group is kept; the threshold of similarity is `near_duplicate_jaccard` in `corpus/config.py`.
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
MIN_RECALL = 0.99  # of the bands, for a pair exactly at the threshold
MAX_ALL_PAIRS_BUCKET = 64  # documents: of larger buckets not all pairs are candidates
SORTING_BYTES = 48  # of memory per document, while one band is sorted
BLOCK_BYTES = 16  # of memory per number of a signature: two blocks at a time fill half of it
PAIRS_PER_CHECK = 1 << 13  # pairs of signatures
PAIRS_PER_JOIN = 1 << 16  # pairs of documents
CAMPAIGN = re.compile(r"(?:^|&)(?:utm_\w+|fbclid|gclid|msclkid|mc_[ce]id)=[^&]*")


def url_key(url: str) -> str:
    """Equal for URLs of the same page: without scheme, `www.`, last slash and campaign parameters."""
    address = canonical(url)
    if address is None:  # not of the web
        return url
    host_and_path, _, query = address.partition("://")[2].removeprefix("www.").partition("?")
    return f"{host_and_path.rstrip('/')}?{CAMPAIGN.sub('', query).lstrip('&')}"


def url_hash(url: str, text: str = "") -> int:
    """64 bits of a digest of `url_key`, for a file also of its text.

    `file:///notes/1.md` says in which folder a file was, not in whose: folders of one name, or parts of one name below different
    folders, hold other texts under the same URL.
    """
    if url.startswith("file:"):
        return int.from_bytes(blake2b(f"{url}\n{text}".encode(), digest_size=8).digest(), "little")
    return int.from_bytes(blake2b(url_key(url).encode(), digest_size=8).digest(), "little")


def text_key(words: Words) -> str:
    """Equal for texts that differ only in white space."""
    return blake2b(" ".join(words.raw).encode(), digest_size=16).hexdigest()


def shingles(words: Words, n: int) -> np.ndarray:
    """Hashes of the word n-grams, uint64, sorted, unique; a shorter text is one shingle, one without words has none."""
    return np.unique(_ngrams(words, n))


def _ngrams(words: Words, n: int) -> np.ndarray:
    return ngrams(words.hashes, min(n, len(words.hashes)))


def signature(words: Words, permutations: int) -> np.ndarray | None:
    """uint32 [permutations], or None for a text without words. The share of equal positions estimates Jaccard."""
    hashes = _ngrams(words, SHINGLE_WORDS)
    if not len(hashes):
        return None
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], permutations, MINHASH_SEED)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def rows_per_band(permutations: int, jaccard: float) -> int:
    """The most rows per band that still find pairs at this similarity: 1 - (1 - jaccard^rows)^bands >= 0.99."""
    sufficient = [
        rows for rows in range(1, permutations + 1) if 1 - (1 - jaccard**rows) ** (permutations // rows) >= MIN_RECALL
    ]
    return max(sufficient, default=1)


def near_duplicate_pairs(
    signatures: Iterable[np.ndarray], jaccard: float, memory_mb: int = 256, folder: Path | None = None
) -> Iterator[np.ndarray]:
    """Pairs of documents with an estimated similarity of at least `jaccard`: sorted blocks of int64 [pairs, 2], first < second.

    `signatures` are blocks of uint32 [documents, permutations]; documents are numbered through all blocks. A pair may be in
    several blocks. At most `memory_mb` is used beside the blocks; what does not fit is written to a folder inside `folder`.
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
    """Write the signatures, and for each band the keys of all documents; returns documents, permutations, bands."""
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
                with (spill / f"band-{band}").open("ab") as band_file:
                    keys.tofile(band_file)
    return documents, permutations, permutations // rows if documents else 0


def _sorted_keys(path: Path, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys of one part of a band, sorted, and the document of each; equal keys are in the same part."""
    keys, documents, start = [], [], 0
    with path.open("rb") as file:
        while len(block := np.fromfile(file, np.uint64, 1 << 20)):
            rows = np.flatnonzero(block % np.uint64(parts) == part) if parts > 1 else np.arange(len(block))
            keys.append(block[rows])
            documents.append(rows + start)
            start += len(block)
    part_keys, owners = np.concatenate(keys), np.concatenate(documents)
    order = np.argsort(part_keys, kind="stable")
    return part_keys[order], owners[order]


def _candidates(keys: np.ndarray, owners: np.ndarray, documents: int) -> Iterator[np.ndarray]:
    """Pairs with equal keys, each as first * documents + second. Of a large bucket only a chain and a star."""
    borders = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    sizes = np.diff(borders)
    ends = np.repeat(borders[1:], sizes)
    large = np.repeat(sizes > MAX_ALL_PAIRS_BUCKET, sizes)
    firsts = np.flatnonzero(np.arange(1, len(keys) + 1) < ends)  # whose next document is in the same bucket
    for distance in range(1, MAX_ALL_PAIRS_BUCKET):
        yield owners[firsts] * documents + owners[firsts + distance]
        firsts = firsts[(firsts + distance + 1 < ends[firsts]) & ~large[firsts]]
        if not len(firsts):
            break
    stars = np.flatnonzero(large)
    heads = np.repeat(borders[:-1], sizes)[stars]
    yield (owners[heads] * documents + owners[stars])[stars != heads]


def _append_pairs(codes: np.ndarray, documents: int, block: int, spill: Path) -> None:
    """Append each pair to the file of the two blocks of signatures that hold its documents."""
    block_codes = codes // documents // block * documents + codes % documents // block
    order = np.argsort(block_codes, kind="stable")
    blocks, starts = np.unique(block_codes[order], return_index=True)
    for name, part in zip(blocks.tolist(), np.split(codes[order], starts[1:]), strict=False):
        first, second = divmod(name, documents)
        with (spill / f"pairs-{first * block}-{second * block}").open("ab") as file:
            part.tofile(file)


def _read_signatures(spill: Path, start: int, count: int, permutations: int) -> np.ndarray:
    with (spill / "signatures").open("rb") as file:
        file.seek(start * permutations * 4)
        return np.fromfile(file, "<u4", count * permutations).reshape(-1, permutations)


def _similar(left: np.ndarray, right: np.ndarray, pairs: np.ndarray, jaccard: float) -> np.ndarray:
    parts = np.array_split(pairs, len(pairs) // PAIRS_PER_CHECK + 1)
    return np.concatenate([(left[part[:, 0]] == right[part[:, 1]]).mean(axis=1) >= jaccard for part in parts])


def clusters(count: int, pairs: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [count]: for each document the smallest one that pairs join it to, directly or through others."""
    parent = np.arange(count)
    for block in pairs:
        for edges in np.array_split(block, len(block) // PAIRS_PER_JOIN + 1):
            while len(edges := _roots(parent, edges)):
                np.minimum.at(parent, edges[:, 1], edges[:, 0])
    return _roots_of(parent, np.arange(count))


def _roots(parent: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The edges between different trees, as pairs of roots, the smaller first."""
    ends = np.sort(_roots_of(parent, edges.reshape(-1)).reshape(-1, 2), axis=1)
    return ends[ends[:, 0] != ends[:, 1]]


def _roots_of(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The root of each node's tree, which is its smallest document; it becomes the parent of each of `nodes`."""
    ancestors = parent[nodes]
    while len(unfinished := np.flatnonzero(parent[ancestors] != ancestors)):
        # Path doubling: each ancestor is then twice as far up, where parents are among the nodes; a long chain takes few rounds.
        parent[nodes[unfinished]] = ancestors[unfinished] = parent[ancestors[unfinished]]
    return ancestors

"""Duplicates and contamination between documents.

Near duplicates by MinHash (Broder 1997) over word 5-grams with banded locality-sensitive hashing, as in GPT-3, Gopher
and FineWeb; candidates are checked against the estimate from their full signatures, then joined by union-find.
Contamination by shared word 13-grams, as in GPT-3 (Brown et al. 2020, appendix C).
"""

from hashlib import blake2b

import numpy as np
from rensa import RMinHash

from groundup.corpus.rules import MULTIPLIER, Words, ngrams, split

SHINGLE_WORDS = 5
MINHASH_SEED = 1
LEAST_RECALL = 0.99  # of the bands, for a pair exactly at the threshold
ALL_PAIRS_BUCKET = 64
BOILERPLATE_DOCUMENTS = 20  # an n-gram in more documents than this is a licence or a heading, not a copy


def text_key(text: str) -> str:
    """Equal for texts that differ in white space only."""
    return blake2b(" ".join(text.split()).encode(), digest_size=16).hexdigest()


def shingles(words: Words, n: int) -> np.ndarray:
    """Hashes of the word n-grams, uint64, sorted, unique; a shorter text is one shingle, one without words has none."""
    hashes = words.hashes
    return np.unique(ngrams(hashes, min(n, len(hashes)))) if len(hashes) else hashes


def signature(words: Words, permutations: int) -> np.ndarray | None:
    """uint32 [permutations], or None for a text without words. Equal places estimate the Jaccard similarity."""
    found = shingles(words, SHINGLE_WORDS)
    if not len(found):
        return None
    rows = RMinHash.digest_matrix_from_token_hash_sets([found], permutations, MINHASH_SEED).to_rows()
    return np.array(rows[0], dtype=np.uint32)


def rows_per_band(permutations: int, jaccard: float) -> int:
    """The most rows a band can have and still find pairs at this similarity: 1 - (1 - jaccard^rows)^bands >= 0.99."""
    fits = [
        rows for rows in range(1, permutations + 1) if 1 - (1 - jaccard**rows) ** (permutations // rows) >= LEAST_RECALL
    ]
    return max(fits, default=1)


def near_duplicate_pairs(signatures: np.ndarray, jaccard: float) -> np.ndarray:
    """Rows of uint32 [documents, permutations] estimated to be so similar: int64 [pairs, 2], first < second, sorted."""
    documents, permutations = signatures.shape
    rows = rows_per_band(permutations, jaccard)
    found = [np.zeros(0, dtype=np.int64)]
    for start in range(0, permutations - rows + 1, rows):
        # Equal bands have equal keys; bands that collide by chance fail the check below.
        keys = np.zeros(documents, dtype=np.uint64)
        for column in range(start, start + rows):
            keys = keys * MULTIPLIER + signatures[:, column]
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1], [True]]))
        for bucket in np.flatnonzero(np.diff(edges) > 1):
            found.append(_pairs_of_bucket(order[edges[bucket] : edges[bucket + 1]], documents))
    codes = np.unique(np.concatenate(found))
    pairs = np.stack([codes // max(1, documents), codes % max(1, documents)], axis=1)
    similar = [
        (signatures[part[:, 0]] == signatures[part[:, 1]]).mean(axis=1) >= jaccard
        for part in np.array_split(pairs, len(pairs) // 65_536 + 1)
    ]
    return pairs[np.concatenate(similar)]


def _pairs_of_bucket(members: np.ndarray, documents: int) -> np.ndarray:
    """Pairs as one number each. A large bucket is a chain and a star: quadratic only where that is cheap."""
    if len(members) <= ALL_PAIRS_BUCKET:
        first, second = np.triu_indices(len(members), k=1)
        return members[first] * documents + members[second]
    chain = members[:-1] * documents + members[1:]
    return np.concatenate([chain, members[0] * documents + members[1:]])


def clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """int64 [count]: for each document the smallest document it is joined to, directly or through others."""
    parent = np.arange(count)

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return np.array([root(node) for node in range(count)], dtype=np.int64)


def representatives(groups: np.ndarray, lengths: list[int], ids: list[str]) -> np.ndarray:
    """int64 [documents]: for each document the longest of its group; of equally long ones, the least id."""
    best: dict[int, int] = {}
    for document, group in enumerate(groups.tolist()):
        other = best.setdefault(group, document)
        if (-lengths[document], ids[document]) < (-lengths[other], ids[other]):
            best[group] = document
    return np.array([best[group] for group in groups.tolist()], dtype=np.int64)


def contamination(held_out: list[str], train: list[str], n: int = 13) -> list[tuple[float, int]]:
    """For each training text: the overlap with the held-out text it is nearest to, and that text's place (-1: none).

    The overlap is the larger of two shares of distinct word n-grams: of the held-out text's, those the training text
    contains; and of the training text's, those the held-out text contains. So a long page that quotes a short held-out
    one counts, and so does an excerpt. N-grams in more than 20 documents are boilerplate and count on neither side.
    """
    held = [shingles(split(text), n) for text in held_out]
    index = np.unique(np.concatenate(held)) if held else np.zeros(0, dtype=np.uint64)
    frequency = np.zeros(len(index), dtype=np.int64)
    held = [np.searchsorted(index, grams) for grams in held]  # from here on an n-gram is its place in the index
    for grams in held:
        frequency[grams] += 1
    shared, sizes = [], []
    for text in train:
        grams = shingles(split(text), n)
        places = np.searchsorted(index, grams)
        places = places[np.append(index, 0)[places] == grams] if len(index) else places[:0]
        places = places[places < len(index)]
        frequency[places] += 1
        shared.append(places)
        sizes.append(len(grams))
    telling = frequency <= BOILERPLATE_DOCUMENTS
    owners = np.concatenate([np.full(len(grams), owner) for owner, grams in enumerate(held)] or [np.zeros(0, int)])
    places = np.concatenate(held or [np.zeros(0, int)])
    order = np.argsort(places, kind="stable")
    owners, starts = owners[order], np.searchsorted(places[order], np.arange(len(index) + 1))
    held_sizes = np.array([max(1, int(telling[grams].sum())) for grams in held])
    return [
        _nearest(places[telling[places]], owners, starts, held_sizes, size - int((~telling[places]).sum()))
        for places, size in zip(shared, sizes, strict=True)
    ]


def _nearest(
    places: np.ndarray, owners: np.ndarray, starts: np.ndarray, held_sizes: np.ndarray, size: int
) -> tuple[float, int]:
    if not len(places):
        return 0.0, -1
    holders = np.concatenate([owners[starts[place] : starts[place + 1]] for place in places.tolist()])
    counts = np.bincount(holders, minlength=len(held_sizes))
    shares = counts / np.minimum(held_sizes, max(1, size))  # the larger of the two shares has the smaller denominator
    nearest = int(shares.argmax())
    return float(shares[nearest]), nearest

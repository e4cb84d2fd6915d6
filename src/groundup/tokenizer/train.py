"""From files to a byte-level BPE: shards counted in parallel, the counts kept on disk, added and merged.

A counts file is named after the content it was counted from, so nothing is counted twice: not after a kill, not for
another vocabulary, not when more files are added.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from groundup.core.errors import UserError
from groundup.core.executor import cores, pool
from groundup.core.files import replacing
from groundup.core.progress import Progress
from groundup.core.seals import is_sealed, seal
from groundup.data.mixture import named_numbers
from groundup.data.readers import Refused
from groundup.tokenizer import bpe, documents
from groundup.tokenizer.counts import LONGEST_PRETOKEN, Counts, Tally, add, prune
from groundup.tokenizer.documents import Shard
from groundup.tokenizer.patterns import Pattern, pattern

logger = logging.getLogger(__name__)

FINEST_FACTOR = 1000  # of the mixture: counts are multiplied by whole numbers, the smallest of them this one
FARTHEST_WEIGHTS = 1e12  # largest ratio between the factors of two domains; 64 bits hold no more
SHARDS_PER_WORKER = 2  # fewer do not pay for starting a process


def train_bpe(
    inputs: Sequence[Path],
    out: Path,
    vocabulary: int,
    pattern_name: str = "qwen2",
    weights: Mapping[str, float] | None = None,
    workers: int | None = None,
    memory: int = 8 << 30,
) -> dict[str, Any]:
    """Write the tokenizer into folder `out` (and `out`/counts); returns the numbers counted, left out and merged.

    `weights`: share of the text of each domain; without, as in the inputs. `memory`: bytes for merging; rare pre-tokens that
    do not fit are left out. The result depends on the documents and these settings alone, not on `workers`.
    Raises UserError when the inputs cannot be read, hold no text, or the vocabulary is too small.
    """
    chosen = pattern(pattern_name)
    refused = Refused()
    by_domain = count_inputs(inputs, out / "counts", chosen, workers, refused)
    counts, pruned = prune(mix(by_domain, weights or {}), memory)
    if pruned.total and not len(counts):
        names = ", ".join(map(str, inputs))[:100]
        raise UserError(
            f"{names}: no pre-token is short enough: each run of letters without a space or line end is one, and those over "
            f"{LONGEST_PRETOKEN >> 10} KB are left out, or do not fit the memory; break the text into words or lines"
        )
    if not len(counts):
        raise UserError(f"no text in {', '.join(map(str, inputs))}{f' ({refused})' if refused else ''}")
    if refused:
        logger.warning(f"passed over: {refused}")
    by_domain = {domain: _size(part) for domain, part in by_domain.items()}
    pa.default_memory_pool().release_unused()  # counting needed more than merging does
    merges = bpe.train(counts, vocabulary)
    from groundup.tokenizer.tokenizer import Tokenizer  # here: the memory of its imports would add to the counts'

    tokenizer = Tokenizer.from_merges(merges, chosen)
    tokenizer.save(out)
    if pruned.distinct:
        logger.info(f"{pruned}")
    if tokenizer.size < vocabulary:
        logger.info(f"vocabulary {tokenizer.size} instead of {vocabulary}: no more pairs to merge")
    return {
        "tokenizer": str(out),
        "vocabulary": tokenizer.size,
        "pattern": chosen.name,
        "compatibility": chosen.compatibility,
        "distinct": len(counts),
        "left_out": {"distinct": pruned.distinct, "occurrences": pruned.occurrences, "of": pruned.total},
        "bytes": by_domain,
    }


def train_plain(kind: str, inputs: Sequence[Path], out: Path, vocabulary: int) -> dict[str, Any]:
    """Write a tokenizer of kind "wordpiece", "characters" or "bytes" into folder `out`; bytes need no training.

    Raises UserError when the inputs cannot be read, hold no text, or the vocabulary is too small.
    """
    from groundup.tokenizer import characters, wordpiece

    refused = Refused()
    texts = documents.texts(documents.find(inputs), "train", refused)
    if kind == "bytes":
        tokenizer = characters.Characters()
    else:
        counts = wordpiece.count_words(texts) if kind == "wordpiece" else characters.count_characters(texts)
        if not counts:
            raise UserError(f"no text in {', '.join(map(str, inputs))}")
        if kind == "wordpiece":
            tokenizer = wordpiece.WordPiece(wordpiece.train(counts, vocabulary))
        else:
            tokenizer = characters.Characters(characters.train(counts, vocabulary))
        if refused:
            logger.warning("passed over: %s", refused)
    tokenizer.save(out)
    return {"tokenizer": str(out), "kind": kind, "vocabulary": tokenizer.size}


def count_inputs(
    inputs: Sequence[Path], folder: Path, chosen: Pattern, workers: int | None = None, refused: Refused | None = None
) -> dict[str, Counts]:
    """Counts by domain, sorted by name, over the training documents of all inputs; stored by shard in `folder`.

    `refused` gets the rows without text of the shards that are counted now.
    """
    shards = documents.find(inputs)
    paths = [folder / f"{shard.name}-{chosen.name}.parquet" for shard in shards]
    todo = {path: (shard, chosen.name, path) for shard, path in zip(shards, paths, strict=True) if not is_sealed(path)}
    workers = workers or max(1, min(cores(), len(todo) // SHARDS_PER_WORKER))
    label, done = "counting", len(shards) - len(todo)
    with pool(workers) as started, Progress(label, len(shards), "shards", done) as progress:
        for passed_over in started.spread(count_shard, todo.values()):
            progress.advance()
            if refused is not None:
                refused.merge(passed_over)
    parts: defaultdict[str, list[Counts]] = defaultdict(list)
    for path in paths:
        for domain, counts in _read(path).items():
            parts[domain].append(counts)
    return {domain: add(parts[domain]) for domain in sorted(parts)}


def count_shard(shard: Shard, pattern_name: str, path: Path) -> Refused:
    """Write the counts of one shard: columns domain, pretoken, number, sorted in this order. Returns the rows passed over."""
    refused = Refused()
    tallies: defaultdict[str, Tally] = defaultdict(lambda: Tally(pattern(pattern_name)))
    for texts, domains in documents.read(shard, "train", refused):
        names = pc.unique(domains).to_pylist()
        for domain in names:
            tallies[domain].add(texts.filter(pc.equal(domains, domain)) if len(names) > 1 else texts)
    tables = []
    for domain in sorted(tallies):
        counts = tallies.pop(domain).counts()
        column = pa.DictionaryArray.from_arrays(np.zeros(len(counts), np.int32), [domain])
        tables.append(pa.table({"domain": column, "pretoken": counts.pretokens, "number": counts.numbers}))
    empty = pa.table({"domain": pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string())),
                      "pretoken": pa.array([], pa.large_binary()), "number": pa.array([], pa.int64())})  # fmt: skip
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables([empty, *tables]).unify_dictionaries(), temporary, compression="zstd")
    seal(path)
    pa.default_memory_pool().release_unused()
    return refused


def parse_weights(pairs: Sequence[str]) -> dict[str, float]:
    """["code=0.3", "prose=0.7"] -> shares. Raises UserError for anything else."""
    return named_numbers(pairs, "weight", "DOMAIN=SHARE with a share above 0, such as code=0.3")


def mix(by_domain: Mapping[str, Counts], weights: Mapping[str, float]) -> Counts:
    """Counts in which the text of each domain has its share by weight; without weights, as in the inputs.

    Domains without a weight are left out. Raises UserError for a weight of a domain that has no text.
    """
    if not weights:
        return add(list(by_domain.values()))
    sizes = {domain: _size(by_domain[domain]) if domain in by_domain else 0 for domain in weights}
    for domain, size in sizes.items():
        if not size:
            raise UserError(f"no text of domain {domain!r} to weigh; there is: {', '.join(by_domain)}")
    multipliers = {domain: weights[domain] / sizes[domain] for domain in sorted(weights)}
    lowest, highest = min(multipliers.values()), max(multipliers.values())
    if not highest < lowest * FARTHEST_WEIGHTS:
        rare = min(multipliers, key=multipliers.__getitem__)
        raise UserError(f"weight of {rare[:60]!r}: another's text would count over {FARTHEST_WEIGHTS:.0e} times as often")
    factors = [round(FINEST_FACTOR * multiplier / lowest) for multiplier in multipliers.values()]
    return add([by_domain[domain] for domain in multipliers], factors)


def _size(counts: Counts) -> int:
    """Bytes of the text that was counted."""
    return int(np.dot(pc.binary_length(counts.pretokens).to_numpy(), counts.numbers))


def _read(path: Path) -> dict[str, Counts]:
    table = pq.ParquetFile(path, read_dictionary=["domain"]).read(use_threads=False)
    counts = {}
    for domain in pc.unique(table["domain"]).to_pylist():
        part = table.filter(pc.equal(table["domain"], domain))
        pretokens = part["pretoken"].cast(pa.large_binary()).combine_chunks()
        counts[domain] = Counts(pretokens, part["number"].to_numpy())
    return counts

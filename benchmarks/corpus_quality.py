"""Quality and domain classifiers, every figure held out by host, book or article.

Quality: Wikipedia's articles, freed of their markup, against pages of the web (WCXB's main content and C4); AUC over
five folds. Then the first 30 words of the longest paragraph of articles that the classifier has not seen: RedPajama's
gave such a paragraph .003.
Domains: nine classes, accuracy over five folds.
"""

import gzip
import json
import re
import sysconfig
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq

from common import arguments, conclude
from groundup.core.words import split
from groundup.corpus.classify import domains, labelled, quality
from groundup.corpus.classify.linear import Classifier

BAR = 0.90
PART_WORDS = 2000  # of a novel or module: documents of the length of the others
SHORT_WORDS = 30
Rows = list[tuple[str, str]]  # group, text


def main() -> None:
    data = arguments(__doc__).data
    claim = "quality and domain classifiers, the lesser of AUC and accuracy held out by host or book"
    if not (data / "text" / "wikipedia_mix.parquet").exists():
        conclude(claim, None, "share", BAR, None, reason=f"{data} is missing")
        return
    web = _web(data)
    wikipedia = _wikipedia(data / "text" / "wikipedia_mix.parquet")
    pages = [row for rows in web.values() for row in rows]
    pages += _parquet(data / "text" / "c4_demo.parquet")
    with tempfile.TemporaryDirectory() as folder:
        auc = _quality(wikipedia, pages, Path(folder))
        _short(wikipedia, pages, Path(folder))
        accuracy = _domains(_classes(data / "text", web, wikipedia), Path(folder))
    conclude(claim, min(auc, accuracy), "share", BAR, min(auc, accuracy) >= BAR)


def _quality(positives: Rows, negatives: Rows, folder: Path) -> float:
    results = quality.train([_write(folder, "positives", positives)], [_write(folder, "negatives", negatives)],
                          folder / "quality.npz")["languages"]["en"]  # fmt: skip
    print(f"quality: {results['positives']} articles, {results['negatives']} web pages; AUC {results['held_out_auc']:.3f}; "
          f"articles above the best tenth of pages {results['positives_kept_with_best_tenth_of_negatives']:.3f}")  # fmt: skip
    return results["held_out_auc"]


def _short(wikipedia: Rows, pages: Rows, folder: Path) -> None:
    def seen(rows: Rows) -> Rows:
        return [row for row in rows if labelled.fold_of(row[0])]

    paths = _write(folder, "seen-positives", seen(wikipedia)), _write(folder, "seen-negatives", seen(pages))
    quality.train([paths[0]], [paths[1]], folder / "seen.npz")
    classifier = Classifier.load(folder / "seen.npz").of_language("en")
    assert classifier
    unseen = [text for group, text in wikipedia if not labelled.fold_of(group)]
    longest = [max(text.split("\n"), key=len).split() for text in unseen]
    short = [" ".join(words[:SHORT_WORDS]) for words in longest if len(words) >= SHORT_WORDS]
    scores = np.array([quality.score(classifier, split(text)) for text in short])
    article_scores = np.array([quality.score(classifier, split(text)) for text in unseen])
    web = np.array([quality.score(classifier, split(text)) for group, text in pages if not labelled.fold_of(group)])
    print(f"score of unseen texts (share of web pages below), median and share above 0.9:\n"
          f"  {len(article_scores)} whole articles {np.median(article_scores):.3f}, {(article_scores > 0.9).mean():.2f}\n"
          f"  {len(short)} paragraphs of {SHORT_WORDS} words {np.median(scores):.3f}, {(scores > 0.9).mean():.2f}\n"
          f"  {len(web)} web pages {np.median(web):.3f}, {(web > 0.9).mean():.2f}")  # fmt: skip


def _domains(classes: dict[str, Rows], folder: Path) -> float:
    sets = {name: [_write(folder, name, rows)] for name, rows in classes.items()}
    results = domains.train(sets, folder / "domains.npz")
    print(f"domains: accuracy {results['held_out_accuracy']:.3f}, macro-F1 {results['held_out_macro_f1']:.3f}")
    for name, recall in results["held_out_recall"].items():
        print(f"  {name:<14} {results['documents'][name]:>5} documents, recall {recall:.3f}")
    return results["held_out_accuracy"]


def _write(folder: Path, name: str, rows: Rows) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps({"group": group, "text": text}) for group, text in rows))
    return path


def _parquet(path: Path) -> Rows:
    """Id and text."""
    columns = pq.read_table(path, columns=["id", "text"]).to_pydict()
    return list(zip(columns["id"], columns["text"], strict=True))


def _web(data: Path) -> dict[str, Rows]:
    rows_of_type: dict[str, Rows] = {}
    with gzip.open(data / "web" / "pages-dev.gold.jsonl.gz", "rt", encoding="utf-8") as lines:
        for page in map(json.loads, lines):
            host = urlsplit(page["url"]).hostname or page["id"]
            if len((page["main_content"] or "").split()) >= 20 and "wiki" not in host:
                rows_of_type.setdefault(page["page_type"], []).append((host, page["main_content"]))
    return rows_of_type


def _classes(text: Path, web: dict[str, Rows], wikipedia: Rows) -> dict[str, Rows]:
    def book(name: str) -> str:
        return "/".join(name.split("/")[:4])  # a manual of the documentation

    manuals = [(book(name), body) for name, body in _parquet(text / "msdocs.parquet")[::12]]
    return {
        "articles": web["article"],
        "forum": web["forum"],
        "shop": web["product"] + web["collection"],
        "documentation": manuals + web["documentation"],
        "encyclopedia": wikipedia,
        "books": _parts(_parquet(text / "novels100.parquet"), 10),
        "science": [(name.partition("@")[2], body) for name, body in _parquet(text / "openstax.parquet")[::3]],
        "reviews": _parquet(text / "movie_reviews.parquet")[::2],
        "code": _parts(_code(), 3),
    }


def _parts(rows: Rows, per_group: int) -> Rows:
    parts = []
    for group, text in rows:
        lines = text.split("\n")
        size = max(1, len(lines) * PART_WORDS // max(1, len(text.split())))
        parts += [(group, "\n".join(lines[start : start + size])) for start in range(0, len(lines), size)][:per_group]
    return parts


def _code() -> Rows:
    """This Python's own library, grouped by package."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(path.parts)]
    texts = [(str(path.relative_to(root).parts[0]), path.read_text("utf-8", "replace")) for path in files]
    return [(group, text) for group, text in texts if len(text.split()) >= 50]


def _wikipedia(path: Path) -> Rows:
    rows = [(name, _without_markup(name, text)) for name, text in _parquet(path)]
    return [(name, text) for name, text in rows if len(text.split()) >= 60]


def _without_markup(name: str, text: str) -> str:
    """The prose of an article, so that markup does not give it away."""
    if name.startswith("wikitext2"):  # spaced tokens, and <unk> for rare words
        text = re.sub(r"^ = .*$", "", text, flags=re.M).replace("<unk>", "").replace(" @-@ ", "-")
        return re.sub(r" @([,.])@ ", r"\1", text).replace(" 's", "'s")
    text = re.sub(r"<ref[^>/]*/>|<ref.*?</ref>|<!--.*?-->", "", text, flags=re.S)
    for _ in range(6):  # templates and tables nest
        text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}", "", text, flags=re.S)
    text = re.sub(r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[\S+ ([^\]]*)\]|'{2,}|<[^>]+>", r"\1", text)
    return re.sub(r"^[=*#:;|!].*$", "", text, flags=re.M).strip()


if __name__ == "__main__":
    main()

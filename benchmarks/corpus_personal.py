"""Personal data: precision and recall by type on two sets of labelled texts, and what 1,000 pages of documentation lose.

A span counts when its bounds and its type are the label's. Mapping: EMAIL_ADDRESS, CREDIT_CARD, IBAN_CODE, IP_ADDRESS,
PHONE_NUMBER and US_SSN are judged; names, places and dates are not looked for. Most telephone numbers of the first set, of
2,109 texts, are made up and in no numbering plan: the table also says how many are proved by a plan alone. The second, of
779, has cards of 12 to 19 digits and telephones of many countries.
"""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from common import arguments, conclude
from groundup.corpus.annotate import personal, telephones

TYPES = {
    "EMAIL_ADDRESS": "email",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip_address",
    "PHONE_NUMBER": "phone",
    "US_SSN": "ssn",
}
BARS = {"email": (0.98, 0.97), "card": (0.98, 0.97), "iban": (0.98, 0.97), "ip_address": (0.98, 0.97),
        "phone": (0.90, 0.85)}  # fmt: skip
BARS_2 = {**BARS, "card": (1.0, 0.98), "phone": (0.97, 0.85)}
PAGES = 1000
# What must stay, found by patterns that know nothing of personal data.
MUST_STAY = {
    "ISBN": re.compile(r"ISBN(?:-1[03])?:? ?[\dX-]{10,17}|\b97[89][- ]?\d[\d -]{8,11}\d\b"),
    "version": re.compile(
        r"(?i)\b(?:v|versions?:? ?|build ?|==|>=)[\"' ]?\d+(?:\.\d+)+|\b\d{1,2}\.\d{1,2}\.\d{4,6}(?:\.\d+)?\b"
    ),
    "timestamp": re.compile(
        r"\b(?:19|20)\d\d[-/.]?[01]\d[-/.]?[0-3]\d(?:[T _-]?[0-2]\d:?[0-5]\d(?::?[0-5]\d)?(?:\.\d+)?)?\b"
        r"|\b\d{1,2}:\d\d:\d\d(?:\.\d+)?\b|\b\d{1,2}[/.-]\d{1,2}[/.-](?:19|20)\d\d\b|\b1[4-7]\d{8}(?:\d{3}|\d{6})?\b"
    ),
}


def main() -> None:
    data = arguments(__doc__).data
    labelled, pages = data / "safety" / "pii_spans_2109.json.gz", data / "text" / "msdocs.parquet"
    labelled_2 = data / "safety" / "pii_presidio_dev.jsonl.gz"
    claim = "personal data: types that miss their precision or recall, and ISBNs, versions, timestamps redacted in documentation"
    missing = [str(path) for path in (labelled, labelled_2, pages) if not path.exists()]
    if missing:
        conclude(claim, None, "count", 0, None, reason=f"{' and '.join(missing)} missing")
        return
    rows = json.loads(gzip.decompress(labelled.read_bytes()))
    names = ("start_position", "end_position", "entity_type")
    below = _labelled([(row["full_text"], [[span[name] for name in names] for span in row["spans"]]) for row in rows], BARS)
    rows = [json.loads(line) for line in gzip.decompress(labelled_2.read_bytes()).splitlines()]
    names = ("start", "end", "type")
    below += _labelled([(row["text"], [[span[name] for name in names] for span in row["spans"]]) for row in rows], BARS_2)
    redacted = sum(_kept(data / "text" / f"{name}.parquet") for name in ("msdocs", "wikipedia_mix"))
    conclude(claim, below + redacted, "count", 0, below + redacted == 0)


def _labelled(rows: list[tuple[str, list[list]]], bars: dict[str, tuple[float, float]]) -> int:
    """Prints the table of texts with their spans (start, end, type); returns how many types are below their bar."""
    right, wrong, missed = Counter(), Counter(), Counter()
    in_plan = 0
    for text, spans in rows:
        gold = {(start, end, TYPES[type_]) for start, end, type_ in spans if type_ in TYPES}
        got = {tuple(span) for span in personal.find(text) if span.type in TYPES.values()}
        right.update(span[2] for span in gold & got)
        wrong.update(span[2] for span in got - gold)
        missed.update(span[2] for span in gold - got)
        in_plan += sum(
            telephones.in_plan(text[start:end].partition("x")[0]) for start, end, type_ in gold if type_ == "phone"
        )
    below = 0
    print("type        labelled  precision  recall")
    for type_ in TYPES.values():
        precision = right[type_] / max(1, right[type_] + wrong[type_])
        recall = right[type_] / max(1, right[type_] + missed[type_])
        print(f"{type_:<11} {right[type_] + missed[type_]:>8}  {precision:>9.3f}  {recall:>6.3f}")
        bar = bars.get(type_, (0, 0))
        below += precision < bar[0] or recall < bar[1]
    print(f"{in_plan} of {right['phone'] + missed['phone']} telephone numbers are in a numbering plan; "
          "the others are known by the words beside them")  # fmt: skip
    return below


def _kept(path: Path) -> int:
    """Prints what is redacted by type; returns how many ISBNs, version numbers and timestamps are touched."""
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    texts = texts[:: max(1, len(texts) // PAGES)][:PAGES]  # all over the set: neighbours are alike
    redacted, held, touched = Counter(), Counter(), 0
    for text in texts:
        spans = personal.find(text)
        redacted.update(span.type for span in spans)
        for name, pattern in MUST_STAY.items():
            for match in pattern.finditer(text):
                held[name] += 1
                if any(span.start < match.end() and match.start() < span.end for span in spans):
                    touched += 1
                    print(f"  {name} touched: {match[0]!r}")
    print(
        f"{path.stem}: {len(texts):,} pages; redacted {dict(redacted)}; held {dict(held)}, {touched} of them touched"
    )
    return touched


if __name__ == "__main__":
    main()

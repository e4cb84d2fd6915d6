"""2,000 pages of 26 languages in the charsets of the web, damaged: how many characters are right, beside other detectors.

A page is a handful of paragraphs of the Universal Declaration of Human Rights (tests/corpus/declaration.json) in one of
its language's charsets. Of every five pages one is as it was, one has a stray byte, one is cut inside a character where its
charset has such, one states another charset than it is in, in its header, its <meta> or both, and one has a paragraph in
another charset of its language. A fifth of the pages states none. Characters count line by line; of a line of which the
length has changed, those before and after the damage. A page without text is given up: its characters count neither way, and
it is printed how many there are.
The others decode the same bytes: resiliparse's and charset_normalizer's detectors, and what trafilatura does of a page.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import takewhile

from common import ROOT, arguments, conclude, machine
from groundup.corpus.extract.charset import decoded

CLAIM = "pages of 26 languages and their charsets, damaged or wrongly labelled, keep their characters or are given up"
PAGES, BAR = 2000, 0.99
LATIN = "utf-8 iso-8859-1 windows-1252"
CENTRAL = "utf-8 iso-8859-2 windows-1250"
CHARSETS = {
    "de": LATIN, "fr": LATIN + " iso-8859-15", "es": LATIN, "pt": LATIN, "sv": LATIN, "da": LATIN, "pl": CENTRAL, "cs": CENTRAL,
    "hu": CENTRAL, "hr": CENTRAL, "tr": "utf-8 iso-8859-9 windows-1254", "lt": "utf-8 windows-1257", "lv": "utf-8 windows-1257",
    "ru": "utf-8 windows-1251 koi8-r iso-8859-5 ibm866", "uk": "utf-8 windows-1251 koi8-u", "bg": "utf-8 windows-1251",
    "el": "utf-8 iso-8859-7 windows-1253", "he": "utf-8 windows-1255 iso-8859-8", "ar": "utf-8 windows-1256 iso-8859-6",
    "th": "utf-8 windows-874", "hi": "utf-8 utf-16", "vi": "utf-8", "zh": "utf-8 gb2312 gbk gb18030", "zh-Hant": "utf-8 big5",
    "ja": "utf-8 shift_jis euc-jp iso-2022-jp", "ko": "utf-8 euc-kr utf-16",
}  # fmt: skip
PYTHON = {"windows-874": "cp874", "ibm866": "cp866"}
LABELS = ["utf-8", "iso-8859-1", "windows-1251", "iso-8859-2", "gbk", "shift_jis", "euc-kr", "big5", "windows-1256"]
DAMAGES = ("none", "one byte", "cut end", "wrong label", "mixed")
Page = tuple[str, str, str, str, bytes, str | None, list[str]]


def encoded(text: str, charset: str) -> bytes:
    """In the charset; what it does not have is left out."""
    return text.encode(PYTHON.get(charset, charset), "ignore")


def pages(texts: dict[str, list[str]]) -> list[Page]:
    """(language, charset, damage, where it is stated, bytes, header's charset, lines as they should be)."""
    pairs = [(language, charset) for language, charsets in CHARSETS.items() for charset in charsets.split()]
    pages = []
    for number in range(PAGES):
        language, charset = pairs[number % len(pairs)]
        dice = random.Random(number)
        damage = DAMAGES[(number // len(pairs)) % len(DAMAGES)]
        label_at = dice.choice(("header", "meta", "both", "both", "neither"))
        pages.append(page(language, charset, damage, label_at, texts[language], dice))
    return pages


def page(language: str, charset: str, damage: str, label_at: str, paragraphs: list[str], dice: random.Random) -> Page:
    label = charset
    if damage == "wrong label":
        label_at = dice.choice(("header", "meta", "both"))
        label = dice.choice([other for other in LABELS if PYTHON.get(other, other) != PYTHON.get(charset, charset)])
    meta = f'<meta charset="{label}">' if label_at in ("meta", "both") else ""
    chosen = [encoded(text, charset).decode(PYTHON.get(charset, charset)) for text in dice.sample(paragraphs, 8)]
    head = f"<html><head>{meta}<title>A page</title></head><body>"
    lines = [head, *(f"<p>{text}</p>" for text in chosen)]
    parts = [encoded(line + "\n", charset.replace("utf-16", "utf-16-le")) for line in lines]
    if charset == "utf-16":
        parts.insert(0, b"\xff\xfe")
    others = [other for other in CHARSETS[language].split() if other not in (charset, "utf-16", "iso-2022-jp")]
    if damage == "mixed" and others and charset not in ("utf-16", "iso-2022-jp"):
        other = dice.choice(others)
        lines[4] = encoded(lines[4], other).decode(PYTHON.get(other, other))
        parts[4] = encoded(lines[4] + "\n", other)
    body = b"".join(parts)
    if damage == "one byte":
        offset = dice.randrange(len(parts[0]) + 20, len(body) - 20)
        body = body[:offset] + bytes([dice.randrange(0x80, 0x100)]) + body[offset:]
    if damage == "cut end":
        body = body[: len(body) - dice.randrange(10, 60)]
        lines = body.decode(PYTHON.get(charset, charset), "ignore").split("\n")
    return language, charset, damage, label_at, body, label if label_at in ("header", "both") else None, lines


def right(text: str, lines: list[str]) -> tuple[int, int]:
    """Characters that are as they should be, and all."""
    total = sum(map(len, lines))
    if not text:
        return 0, 0
    got = text.removeprefix("\ufeff").split("\n")
    good = 0
    for wanted, line in zip(lines, got, strict=False):
        if len(wanted) == len(line):
            good += sum(a == b for a, b in zip(wanted, line, strict=True))
            continue
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, line, strict=False)))
        end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(wanted), reversed(line), strict=False)))
        good += min(start + end, len(wanted))
    return min(good, total), total


def others() -> dict[str, Callable[[bytes, str | None], str]]:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    readers = {
        "resiliparse": lambda body, label: bytes_to_str(
            body, detect_encoding(body, from_html_meta=True), fallback_encodings=("utf-8", "cp1252")
        )
    }
    try:
        from charset_normalizer import from_bytes

        readers["charset_normalizer"] = lambda body, label: str(from_bytes(body).best() or "")
    except ImportError:
        print("charset_normalizer is not installed")
    try:
        from trafilatura.utils import decode_file

        readers["trafilatura"] = lambda body, label: decode_file(body)
    except ImportError:
        print("trafilatura is not installed")
    return readers


def main() -> None:
    arguments(__doc__)
    print(machine())
    made = pages(json.loads((ROOT / "tests" / "corpus" / "declaration.json").read_text("utf-8")))
    readers = {"groundup": lambda body, label: decoded(body, label, "text/html")[0], **others()}
    figures = {}
    for name, read in readers.items():
        by: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        given_up, spent, worst = 0, 0.0, defaultdict(list)
        for language, charset, damage, label_at, body, label, lines in made:
            began = time.process_time()
            text = read(body, label)
            spent += time.process_time() - began
            good, total = right(text, lines)
            given_up += not total
            for key in ("all", f"damage {damage}", f"language {language}", f"charset {charset}"):
                by[key][0] += good
                by[key][1] += total
            if total and good < 0.97 * total:
                worst[f"{language}/{charset}/{damage}/{label_at}"].append(round(good / total, 2))
        figures[name] = by["all"][0] / max(1, by["all"][1])
        print(f"{name}: {figures[name]:.4f} right, {given_up} pages given up, {1000 * spent / len(made):.2f} ms a page")
        for kind in ("damage", "language", "charset"):
            rows = [(key.removeprefix(kind), good, total) for key, (good, total) in by.items() if key.startswith(kind)]
            print(f"  by {kind}:", ",".join(f"{key} {good / max(1, total):.3f}" for key, good, total in rows))
        if name == "groundup":
            shown = sorted(worst.items(), key=lambda pair: sum(pair[1]) - len(pair[1]))[:20]
            print(f"  {sum(map(len, worst.values()))} pages below 97 %:", ", ".join(f"{key} {shares}" for key, shares in shown))
    best = max((name for name in figures if name != "groundup"), key=figures.__getitem__)
    figure = figures["groundup"]
    conclude(CLAIM, figure, "share of characters right", BAR, figure >= BAR, peer=best, peer_figure=figures[best])


if __name__ == "__main__":
    main()

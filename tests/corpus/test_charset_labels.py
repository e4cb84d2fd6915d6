"""Each label of the Encoding Standard has a codec, or its pages are read in the likeliest charset or given up, and counted."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.charset import READABLE, _codec, decoded
from groundup.corpus.extract.letter_frequencies import fit
from groundup.corpus.extract.page_text import extract

HERE = Path(__file__).parent
NAMES = {name: labels.split() for name, labels in json.loads((HERE / "whatwg_labels.json").read_text()).items()}
LABELS = {label: name for name, labels in NAMES.items() for label in labels}
NO_CODEC = {"replacement", "iso-2022-cn", "iso-2022-cn-ext", "x-user-defined"}
DECLARATION = json.loads((HERE / "declaration.json").read_text(encoding="utf-8"))
# The languages that each charset was made for.
LANGUAGES = {
    "ibm866": "ru", "iso-8859-2": "pl hu", "iso-8859-3": "de", "iso-8859-4": "lv", "iso-8859-5": "ru", "iso-8859-6": "ar",
    "iso-8859-7": "el", "iso-8859-8": "he", "iso-8859-8-i": "he", "iso-8859-10": "is", "iso-8859-13": "lt lv",
    "iso-8859-14": "ga", "iso-8859-15": "fr fi", "iso-8859-16": "pl", "koi8-r": "ru", "koi8-u": "ru", "macintosh": "de fr",
    "windows-874": "th",
    "windows-1250": "cs hr", "windows-1251": "bg uk", "windows-1252": "de es", "windows-1253": "el", "windows-1254": "tr",
    "windows-1255": "he", "windows-1256": "ar", "windows-1257": "lt", "windows-1258": "fr", "x-mac-cyrillic": "ru", "gbk": "zh",
    "gb18030": "zh", "big5": "zh-Hant", "euc-jp": "ja", "iso-2022-jp": "ja", "shift_jis": "ja", "euc-kr": "ko",
    "utf-8": "de zh ar", "utf-16be": "de zh ar", "utf-16le": "de zh ar", "replacement": "ko zh",
}  # fmt: skip


def page(language: str) -> str:
    return "".join(f"<p>{one}</p>\n" for one in DECLARATION[language][:2])


def test_the_standard_has_228_labels_of_40_encodings():
    assert (len(LABELS), len(NAMES)) == (228, 40)
    assert {label for label in LABELS if _codec(label) is None} == NO_CODEC


@pytest.mark.parametrize("name", [name for name in NAMES if name != "x-user-defined"])
def test_every_label_reads_what_is_written_in_its_charset(name):
    for label in NAMES[name]:
        if label in NO_CODEC:
            continue
        for language in LANGUAGES[name].split():
            if label in ("iso-2022-kr", "csiso2022kr", "hz-gb-2312") and (language == "zh") != (label == "hz-gb-2312"):
                continue
            text = "".join(letter for letter in page(language) if letter not in "\u2019\u2010")
            body = text.encode(_codec(label))
            assert decoded(body, f" {label.upper()}", "text/html") == (text, 0), label
            if not name.startswith("utf-16"):
                meta = f"<meta charset='{label}'>"
                assert decoded(meta.encode() + body, None, "text/html") == (meta + text, 0), label


def test_letters_that_no_codec_reads_are_counted_and_a_page_of_them_is_given_up():
    chinese = b"".join(b"<p>\x1b$)A\x0e" + one[:40].encode("gb2312", "ignore").replace(b"\xa1", b"").translate(
        bytes(at & 0x7F for at in range(256))) + b"\x0f</p>\n" for one in DECLARATION["zh"][:6])  # fmt: skip
    for label in ("iso-2022-cn", None):
        text, replaced = decoded(chinese, label, "text/html")
        assert replaced > 20 and text.count("<p>") == 6
        found = extract(Page("http://a.org/", "text/html", chinese, label))
        assert found.text == "" and found.replaced == replaced


@pytest.mark.parametrize("label", sorted(NO_CODEC))
@pytest.mark.parametrize("language", ["de", "ru", "ja"])
def test_a_label_without_a_codec_does_not_hide_a_page(label, language):
    for charset in ("utf-8", {"de": "cp1252", "ru": "koi8_r", "ja": "euc_jp"}[language]):
        assert decoded(page(language).encode(charset), label, "text/html") == (page(language), 0)


@settings(max_examples=6)
@given(st.lists(st.binary(min_size=4, max_size=9).map(lambda word: bytes(0x80 | one for one in word)), min_size=20, max_size=30))
def test_private_letters_are_given_up_or_look_like_a_language(words):
    body = b"<p>" + b" ".join(words) + b"</p>"
    found = extract(Page("http://a.org/", "text/html", body, "x-user-defined"))
    text, replaced = decoded(body, "x-user-defined", "text/html")
    assert (found.text == "" and replaced) or fit(text) > READABLE


@pytest.mark.parametrize("name", ["gbk", "big5", "euc-jp", "shift_jis", "euc-kr"])
@given(st.lists(st.sampled_from("‐—’…“”※→■★"), min_size=1, max_size=8))
def test_a_few_signs_are_of_the_charset_that_is_stated(name, signs):
    text = "<p>" + "".join(f"He said {sign} and left. " for sign in signs) + "</p>"
    try:
        body = text.encode(_codec(name))
    except UnicodeEncodeError:
        return
    assert decoded(body, name, "text/html") == (text, 0)

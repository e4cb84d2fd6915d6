"""The charset of a damaged page stays what it is: stray bytes and cuts are replaced, and counted."""

import codecs
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.annotate.measure import measure
from groundup.corpus.archive.warc import Page
from groundup.corpus.config import AnnotationsConfig
from groundup.corpus.extract import charset
from groundup.corpus.extract.charset import decoded
from groundup.corpus.extract.page_text import decode, extract, utf8

DECLARATION = json.loads(Path(__file__).with_name("declaration.json").read_text(encoding="utf-8"))
SAMPLES = {
    "de": "Die Größe der Häuser ändert über Jahre müde Gefühle, schön für Bücher",
    "fr": "Élève à l'école, où le garçon était déjà très fatigué",
    "pl": "Zażółć gęślą jaźń, proszę państwa, żeby było więcej",
    "ru": "Это проверка русского текста на разных сайтах",
    "el": "Αυτό είναι ένα μικρό κείμενο για την κωδικοποίηση",
    "ar": "هذا نص قصير لاختبار الترميز في الصفحات",
    "hi": "यह एक छोटा पाठ है जो जाँच के लिए है",
    "zh": "我们在这里测试中文编码的识别情况，看看它是否能够正确地工作",
    "ja": "これは日本語のテストです。文字コードの判定を確認します",
    "ko": "이것은 한국어 시험입니다. 문자 인코딩을 확인합니다",
    "th": "นี่คือข้อความภาษาไทยสำหรับการทดสอบการเข้ารหัส",
}
LEGACY = {
    "de": "iso-8859-1", "fr": "windows-1252", "pl": "iso-8859-2", "ru": "windows-1251", "el": "iso-8859-7", "ar": "windows-1256",
    "zh": "gb2312", "ja": "shift_jis", "ko": "euc-kr", "th": "tis-620",
}  # fmt: skip
STATED = [None, "utf-8", "UTF8"]
TYPES = ["text/html", "text/plain"]


def read(body: bytes, label: str | None, kind: str = "text/html") -> tuple[str, int]:
    page = Page("http://a.org/", kind, body, label)
    text, replaced = decoded(body, label, kind)
    assert decode(page) == text == utf8(page).decode()
    return text, replaced


@pytest.mark.parametrize("language", SAMPLES)
@pytest.mark.parametrize("charset", STATED)
@pytest.mark.parametrize("kind", TYPES)
def test_one_stray_byte_or_a_cut_inside_a_character_changes_nothing_else(language, charset, kind):
    text = "<p>" + SAMPLES[language] + "</p>"
    body = text.encode()
    assert read(body, charset, kind) == (text, 0)
    for stray in (b"\xff", b"\xe4", b"\x92", b"\x80"):
        found, replaced = read(body[:3] + stray + body[3:], charset, kind)
        assert (found[:3] + found[4:], replaced) == (text, 1)
    cut = next(at for at in range(len(body) - 1, 0, -1) if body[at] & 0xC0 == 0x80)
    found, replaced = read(body[:cut], charset, kind)
    assert (found[:-1], found[-1], replaced) == (text[: len(found) - 1], "\ufffd", 1)


@given(
    st.sampled_from(sorted(SAMPLES)), st.integers(0, 10_000), st.sampled_from([b"\xff", b"\xfe", b"\xc0", b"\x92"]),
    st.sampled_from(STATED), st.integers(1, 5),
)  # fmt: skip
def test_damage_anywhere_costs_what_it_touches(language, place, stray, charset, times):
    text = SAMPLES[language] * 2
    body = text.encode()
    for turn in range(times):
        at = (place * (turn + 1)) % len(body)
        body = body[:at] + stray + body[at:]
    found, replaced = read(body, charset)
    assert 1 <= replaced <= 4 * times
    assert "Ã" not in found
    assert len(set(text) - set(found)) <= times
    assert sum(found.count(letter) for letter in set(text)) >= len(text) - times


@given(st.sampled_from(sorted(SAMPLES)), st.integers(1, 300), st.sampled_from(STATED))
def test_a_page_cut_anywhere_keeps_what_was_there(language, size, charset):
    body = SAMPLES[language].encode()[:size]
    found, replaced = read(body, charset)
    whole = body.decode("utf-8", "ignore")
    if whole.isascii() and charset is None:  # nothing says that it was UTF-8
        assert found.startswith(whole)
    else:
        assert (found, replaced) in ((whole, 0), (whole + "\ufffd", 1))


@pytest.mark.parametrize("language", LEGACY)
def test_other_charsets_stay_as_well(language):
    codec, text = LEGACY[language], SAMPLES[language]
    body = text.encode(codec, "ignore")
    text = body.decode(codec)
    head = f'<meta charset="{codec}">'.encode()
    assert read(body, codec) == (text, 0)
    assert read(head + body, None)[0].endswith(text)
    damaged = body + b"\n\xff\xff\n" + body
    for found, _ in (read(damaged, codec), read(head + damaged, None)):
        assert found.endswith(text)
    if language not in ("ru", "ko"):  # which the detector does not tell of so few words
        assert read(body * 3, None, "text/plain")[0] == text * 3


def test_a_charset_that_is_stated_wrongly_is_not_believed():
    text = SAMPLES["de"] * 3
    assert read(text.encode("latin-1"), "utf-8") == (text, 0)
    assert read(text.encode(), "iso-8859-1") == (text, 0)
    assert read(text.encode(), "utf-16") == (text, 0)
    assert read(text.encode(), "no-such") == (text, 0)
    assert read(text.encode(), "unicode_escape") == (text, 0)
    xml = b'<?xml version="1.0" encoding="windows-1251"?>' + SAMPLES["ru"].encode("cp1251")
    assert read(xml, None)[0].endswith(SAMPLES["ru"])
    assert read(b"\x1b$B$3$s$K$A$O\x1b(B", "iso-2022-jp") == ("こんにちは", 0)


def test_replacements_are_counted_but_not_those_of_the_page_itself():
    assert read("schön \ufffd".encode(), None) == ("schön \ufffd", 0)
    assert read("schön \ufffd".encode() + b"\xff", "utf-8")[1] == 1
    page = Page("http://a.org/", "text/plain", "schöne Bücher".encode() + b"\xff", None)
    assert extract(page).replaced == 1
    assert measure(page, "d", AnnotationsConfig())["replacement_characters"] == 1


@given(st.binary(max_size=80), st.sampled_from([None, "utf-8", "gbk", "utf-16", "iso-2022-jp", "x", "\x00", "big5", "zip"]))
def test_any_bytes_of_any_charset(body, charset):
    text, replaced = read(body, charset)
    assert 0 <= replaced <= len(text)


# Languages and charsets that pages of them are in.
CHARSETS = {
    "de": ["cp1252"], "fr": ["cp1252", "iso8859_15"], "es": ["cp1252"], "pt": ["cp1252"], "sv": ["cp1252"], "da": ["cp1252"],
    "pl": ["cp1250", "iso8859_2"], "cs": ["cp1250", "iso8859_2"], "hu": ["cp1250"], "hr": ["cp1250"], "tr": ["cp1254"],
    "lt": ["cp1257"], "lv": ["cp1257"], "ru": ["cp1251", "koi8_r", "iso8859_5", "cp866"], "uk": ["cp1251", "koi8_u"],
    "bg": ["cp1251"], "el": ["cp1253", "iso8859_7"], "he": ["cp1255"], "ar": ["cp1256", "iso8859_6"], "th": ["cp874"], 
    "zh": ["gb18030"], "zh-Hant": ["big5"], "ja": ["cp932", "euc_jp"], "ko": ["cp949"],
}  # fmt: skip
PAIRS = [(language, codec) for language, codecs in CHARSETS.items() for codec in codecs]
WRONG = ["utf-8", "iso-8859-1", "windows-1251", "gbk", "shift_jis", "euc-kr", "big5", "iso-8859-2", "koi8-r", "x-nonsense"]


def declaration(language, codec, first=0, last=8):
    """Paragraphs with tags, of what the charset has."""
    some = DECLARATION[language][first:last]
    return "".join(f"<p>{one}</p>\n" for one in some).encode(codec, "ignore").decode(codec)


def likeness(found, wanted):
    assert len(found) == len(wanted)
    return sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)


@pytest.mark.parametrize(("language", "codec"), PAIRS)
def test_a_charset_is_known_whatever_is_stated(language, codec):
    text = declaration(language, codec)
    assert decoded(text.encode(codec), None, "text/html") == (text, 0)
    for number, label in enumerate(WRONG):
        meta = f'<meta charset="{label}">' if number % 2 else ""
        found, replaced = decoded((meta + text).encode(codec), None if number % 3 == 1 else label, "text/html")
        # ANSI letters that a table shares between charsets, as quotation marks, may be another's.
        assert likeness(found, meta + text) > 0.99 and not replaced, label


@pytest.mark.parametrize("label", WRONG[1:])
def test_utf8_is_known_whatever_is_stated(label):
    for language in CHARSETS:
        text = declaration(language, "utf-8", 0, 3)
        assert decoded(text.encode(), label, "text/html") == (text, 0), language


@pytest.mark.parametrize(("language", "codec"), PAIRS)
def test_an_insertion_in_another_charset_is_read_as_well(language, codec):
    inside = declaration(language, codec, 8, 10)
    around = declaration(language, codec, 0, 4), declaration(language, codec, 10, 14)
    for page, part in (("utf-8", codec), (codec, "utf-8")):
        body = around[0].encode(page) + inside.encode(part) + around[1].encode(page)
        assert likeness(decoded(body, page, "text/html")[0], around[0] + inside + around[1]) > 0.99, page


def test_typographic_marks_of_windows_in_an_english_page_are_those():
    text = "<p>It’s “here” – and doesn’t end…</p>\n"
    assert decoded(text.encode("cp1252"), "utf-8", "text/html") == (text, 0)
    body = ("<p>Größe</p>\n" * 9).encode() + text.encode("cp1252")
    assert decoded(body, "utf-8", "text/html")[0].endswith(text)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_finds_its_step_again(codec):
    text = declaration("hi", "utf-8")
    whole = ("\ufeff" + text).encode(codec)
    assert decoded(whole, None, "text/html") == (text, 0)
    damaged = whole[:301] + b"\xe4" + whole[301:]
    found, _ = decoded(damaged, None, "text/html")
    line_ends = text.index("\n", 150)
    assert found.endswith(text[line_ends:])


# https://encoding.spec.whatwg.org/#names-and-labels: labels that are not the name itself, and what pages mean by them.
# https://encoding.spec.whatwg.org/#names-and-labels: labels that are not the name itself, and what pages mean by them.
LABELS = """
    cp932 x-sjis ms_kanji windows-31j csshiftjis
    utf-8 unicode-1-1-utf-8 utf8
    cp1252 iso-8859-1 latin1 us-ascii l1
    cp1254 iso-8859-9 latin5
    cp874 tis-620 iso-8859-11 dos-874
    gb18030 gb2312 gb_2312-80 chinese x-gbk
    big5hkscs cn-big5 x-x-big5
    cp949 ks_c_5601-1987 korean
    euc_jp x-euc-jp
    iso2022_jp iso-2022-jp
    koi8_r cskoi8r
    koi8_u koi8-ru
    cp1250 x-cp1250
    cp866 866
    iso8859_8 logical visual
    mac_cyrillic x-mac-cyrillic
    mac_roman macintosh
    iso8859_2 l2
    iso8859_7 greek
    iso8859_6 arabic
    iso8859_5 cyrillic
    utf-16-le utf-16
    utf-16-be unicodefffe
    None replacement iso-2022-cn x-user-defined unicode_escape zip
"""


@pytest.mark.parametrize("names", LABELS.strip().splitlines())
def test_labels_of_the_web(names):
    codec, *labels = names.split()
    for label in labels:
        found = charset._codec(f" {label.upper()} ")
        assert str(found and codecs.lookup(found).name) == (codec if codec == "None" else codecs.lookup(codec).name), label


def test_what_cannot_be_read_is_given_up_and_counted():
    body = bytes(random.Random(0).choices(range(0x80, 0x100), k=600)) + b" and some words of English"
    found = extract(Page("http://a.org/", "text/plain", body, "utf-8"))
    assert found.text == "" and found.replaced > 100
    few = extract(Page("http://a.org/", "text/plain", b"Some words \x81 of English, \x9d and more", "utf-8"))
    assert few.text == "Some words \ufffd of English, \ufffd and more" and few.replaced == 2


def test_the_work_grows_with_the_page(monkeypatch):
    """Pieces of a page in another charset are looked at one by one, up to a bound."""
    calls = []
    monkeypatch.setattr(charset, "fit", lambda text: calls.append(len(text)) or 0.5)
    line = declaration("ru", "cp1251", 0, 1).encode("cp1251")
    counts = []
    for times in (1000, 4000):
        calls.clear()
        decoded(line * times, "windows-1251", "text/html")
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 3 * charset.MOST_PIECES


@given(st.sampled_from(PAIRS), st.integers(0, 20), st.sampled_from(["utf-8", None, "iso-8859-1", "gbk"]), st.data())
@settings(max_examples=30, deadline=None)
def test_a_stray_byte_costs_a_line_at_most(pair, start, label, data):
    language, codec = pair
    text = declaration(language, codec, start, start + 6)
    body = text.encode(codec)
    place = data.draw(st.integers(0, len(body)))
    found, _ = decoded(body[:place] + b"\xff" + body[place:], label, "text/html")
    lines = text.split("\n")
    wrong = sum(one != other for one, other in zip(lines, found.split("\n"), strict=True))
    assert wrong <= 2

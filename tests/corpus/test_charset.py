"""The charset of a damaged page stays what it is: stray bytes and cuts are replaced, and counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.annotate.measure import measure
from groundup.corpus.archive.warc import Page
from groundup.corpus.config import AnnotationsConfig
from groundup.corpus.extract.charset import decoded
from groundup.corpus.extract.page_text import decode, extract, utf8

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


def read(body: bytes, charset: str | None, kind: str = "text/html") -> tuple[str, int]:
    page = Page("http://a.org/", kind, body, charset)
    text, replaced = decoded(body, charset, kind)
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

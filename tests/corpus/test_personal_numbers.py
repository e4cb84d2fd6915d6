"""Cards of every length, telephones of other countries, national identity numbers: found, and not found in other numbers."""

import gzip
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.annotate import payment_cards, personal

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[3] / "shared" / "data"))


def found(text, language="en"):
    return [(span.type, text[span.start : span.end]) for span in personal.find(text, language)]


def numbered(start: str, digits: int) -> str:
    """A number that passes Luhn with these first digits."""
    body = start.ljust(digits - 1, "7")
    return body + next(digit for digit in "0123456789" if payment_cards.luhn(body + digit))


@pytest.mark.parametrize(
    ("start", "digits"),
    [("4", 13), ("4", 19), ("36", 14), ("305", 14), ("38", 17), ("2131", 15), ("1800", 15), ("5018", 12), ("6759", 18),
     ("62", 19), ("2200", 16), ("9792", 16), ("5893", 16), ("3528", 19)],
)  # fmt: skip
def test_cards_of_other_lengths_are_known_by_the_words_beside_them(start, digits):
    number = numbered(start, digits)
    for text in ("Visa Karte {}", "my card:\n{}.", "la tarjeta n. {}", "{} (Maestro)", "卡号 {}"):
        assert found(text.format(number)) == [("card", number)]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert found(f"my card {wrong}") == []
    assert found(f"my card, EAN {number}") == found("word " * 20 + number) == []
    assert found(f"my card {numbered('1', digits)}") == []  # nobody issues it


def test_groups_stand_alone_and_what_follows_is_another_number():
    diners, visa = numbered("36", 14), numbered("4", 19)
    assert found(f"{diners[:4]} {diners[4:10]} {diners[10:]}")[0][0] == "card"
    assert found(" ".join(visa[at : at + 4] for at in range(0, 19, 4)))[0][0] == "card"
    assert found("4111 1111 1111 1111 123") == [("card", "4111 1111 1111 1111")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("+46 (0)8 928 571 38 fax", "+46 (0)8 928 571 38"),
        ("at +41(0)96 471 07 95.", "+41(0)96 471 07 95"),
        ("from +33 1 42 68 53 00 on", "+33 1 42 68 53 00"),
        ("Phone:\n60-56-85-91\n", "60-56-85-91"),
        ("**Tel.**\n\n21 284 698 2548", "21 284 698 2548"),
        ("Desk: 5403926876", "5403926876"),
        ("Büro: 0431 / 350690", "0431 / 350690"),
        ("send messages to 0688 872 49 99", "0688 872 49 99"),
        ("电话：010-6552 9988", "010-6552 9988"),
        ("тел. 22-33-44", "22-33-44"),
    ],
)
def test_telephones(text, value):
    assert found(text) == [("phone", value)]


@pytest.mark.parametrize(
    ("language", "number"),
    [
        ("de", "0431 350690"), ("de", "(030) 226 343-55"), ("de", "0151 / 15071635"), ("fr", "01 42 68 53 00"),
        ("fr", "01.42.68.53.00"), ("it", "02 7200 1234"), ("es", "912 34 56 78"), ("nl", "020-624 1111"), ("sv", "08-508 290 00"),
        ("ja", "03-3581-4321"), ("pt", "(11) 3091-3500"), ("en", "020 7946 0018"),
    ],
)  # fmt: skip
def test_national_numbers_are_those_of_the_page_s_language(language, number):
    assert found(f"a {number}, b", language) == [("phone", number)]
    assert found(f"a {number}, b", "pl") == []


@pytest.mark.parametrize(
    "text",
    [
        "Mobile\n2 000 000 users", "reach 250 000 people, text 100.000", "Phone:\nsince 1998-2004",
        "Die 0431 3506 und 01 02 03 04",
        "von 08.30-12.30 14.00, am 01.02.2024 10 30", "Work 123456", "250 000 Stück",
        "the home 1234567 of",
    ],
)  # fmt: skip
def test_no_telephones(text):
    assert found(text, "de") == found(text, "en") == []


IDS = [
    "RSSMRA85T10A562S", "390.533.447-05", "756.9217.0769.85", "131052-308T", "12.531.909-2", "93.05.18-223.61",
    "1 85 05 78 006 084 91", "11010519491231002X", "BOXW310820HNERXN09",
]  # fmt: skip
NAMED = [
    "NHS number: 943 476 5919", "NIF 12345678Z", "NIE X-2482300W", "PESEL\n44051401359", "BSN is 111222333",
    "Steuer-ID: 36 574 261 809", "personnummer 811228-9874", "Aadhaar No. 2341 2341 2346", "TFN 123 456 782",
    "ID number 8001015009087",
    "rodné číslo 710319/2745",
    "CNP 1630615123457", "OIB 33392005961", "TCKN 17291716060", "SIN: 123-456-782",
]  # fmt: skip


@pytest.mark.parametrize("text", IDS + NAMED)
def test_national_ids(text):
    ((type_, value),) = found(f"a {text}, b")
    assert type_ == "national_id" and text.endswith(value)
    number = value.removesuffix("X") if value in IDS else value
    digit = next(at for at in range(len(number) - 1, 0, -1) if number[at].isdigit())
    wrong = value[:digit] + str((int(value[digit]) + 1) % 10) + value[digit + 1 :]
    assert "national_id" not in dict(found(f"a {text.removesuffix(value)}{wrong}, b"))
    if text in NAMED:
        assert "national_id" not in dict(found(f"a {value}, b"))  # its name is missing
        assert found(f"{text} 12")[0] == (type_, value)  # another number follows


@given(st.text(alphabet="PESEL NHSXZ-./0123456789\n:card", max_size=120))
def test_any_text_gives_spans_in_order(text):
    spans = personal.find(text, "pl")
    assert all(before.end <= after.start for before, after in pairwise(spans))


@pytest.mark.parametrize("part", ["NHS 1", "X1234567 ", "card 4", "131052-", "(0)", "ABCDEF12", "0431 "])
def test_a_page_of_one_thing_costs_one_pass(part, growth):
    assert growth(lambda characters: personal.find(part * (characters // len(part)), "de"), 15_000) < 8


def test_labelled_texts():
    path = DATA / "safety" / "pii_presidio_dev.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    right, wrong, missed = Counter(), Counter(), Counter()
    types = {"CREDIT_CARD": "card", "PHONE_NUMBER": "phone"}
    for row in map(json.loads, gzip.decompress(path.read_bytes()).splitlines()):
        gold = {(span["start"], span["end"], types[span["type"]]) for span in row["spans"] if span["type"] in types}
        got = {tuple(span) for span in personal.find(row["text"]) if span.type in types.values()}
        right.update(span[2] for span in gold & got)
        wrong.update(span[2] for span in got - gold)
        missed.update(span[2] for span in gold - got)
    assert right["card"] >= 0.98 * (right["card"] + missed["card"]) and not wrong["card"]
    assert right["phone"] >= 0.85 * (right["phone"] + missed["phone"])
    assert right["phone"] >= 0.97 * (right["phone"] + wrong["phone"])

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


def found(text):
    return [(span.type, text[span.start : span.end]) for span in personal.find(text)]


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        ("Write to jane.doe+x@mail.acme.co.uk.", "email", "jane.doe+x@mail.acme.co.uk"),
        ("jane@acme.com", "email", "jane@acme.com"),  # at the end of the text
        ("from 203.0.114.77, port 80", "ip_address", "203.0.114.77"),
        ("host 2a00:1450:4001:81b::200e up", "ip_address", "2a00:1450:4001:81b::200e"),
        ("call +44 20 7946 0018 today", "phone", "+44 20 7946 0018"),
        ("call (415) 867-5309.", "phone", "(415) 867-5309"),
        ("call (415) 867-5309 ext. 12.", "phone", "(415) 867-5309 ext. 12"),
        ("card 4111 1111 1111 1111,", "card", "4111 1111 1111 1111"),
        ("amex 3782-822463-10005", "card", "3782-822463-10005"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("pay DE89370400440532013000 NOW", "iban", "DE89370400440532013000"),
        ("my iban is gb82west12345698765432", "iban", "gb82west12345698765432"),
        ("from 4f8a:c99e:dc86:faf9:5988:5f63:375e:8a2a", "ip_address", "4f8a:c99e:dc86:faf9:5988:5f63:375e:8a2a"),
        ("lost 10.218.6.131 again", "ip_address", "10.218.6.131"),
        ("SSN: 308-63-0237", "ssn", "308-63-0237"),
        ("call +1 (415) 867-5309 2 times", "phone", "+1 (415) 867-5309"),
        ("from abroad 0044 20 7946 0018", "phone", "0044 20 7946 0018"),
        ("1-800-356-9377 is free", "phone", "1-800-356-9377"),
        ("833.719.3994x1887", "phone", "833.719.3994x1887"),
        # In no plan, but the text says what they are.
        ("Phone: 449 4898", "phone", "449 4898"),
        ("tel. no.: 0431 35 06 90, room 7", "phone", "0431 35 06 90"),
        ("Telefon (privat): 0431 350690", "phone", "0431 350690"),
        ("You can call us at 33 93 31 now", "phone", "33 93 31"),
        ("☎ 02.27.96.63.08", "phone", "02.27.96.63.08"),
        ("12 High St\n(022) 0793-176 office\nLeeds", "phone", "(022) 0793-176"),
        ("\n0910-5877671-Fax", "phone", "0910-5877671"),
        ("Phone: 𝟐𝟎𝟐-𝟒𝟓𝟔-𝟏𝟏𝟏𝟏", "phone", "𝟐𝟎𝟐-𝟒𝟓𝟔-𝟏𝟏𝟏𝟏"),  # digits in disguise
    ],
)
def test_found(text, type_, value):
    assert found(text) == [(type_, value)]


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com and root@localhost and a@b.example and x@host.test",
        "git@github.com:owner/name.git",
        "matrix @ other.sum() and self.w@self.x",
        "10.0.0.1 192.168.1.20 127.0.0.1 224.0.0.251",
        "version 10.20.30.40, section 8.2.4.44, 3.1.1.6",
        "1.2.3.4.5.6",
        "x[::2] a::b 12:30:45 1:2:3:4:5:6:7:8 fe80::1 2001:db8::17",
        "ISBN 9780131103627, 3.141592653589793, 1234567890",
        "Decimal('+35236450.6')",
        "(212) 555-0123",  # kept for fiction
        "4111 1111 1111 1112",  # fails Luhn
        "1234 5678 9012 3452",  # passes Luhn, but nobody issues it
        "GB82 WEST 1234 5698 7654 33",
        "0.4111111111111111",
        "000-12-3456 666-12-3456 912-12-3456 123-00-4567 123-45-0000 1-123-45-6789",  # never given out; a longer number
        "00:11:22:33:44:55:66:77 aa:bb:cc:dd:ee:ff 10.0.0.4 10.10.10.100",
        "2026-09-27 14:30:05 20260927143005 1609459200000 27.09.2026 12/31/1999",
        "ISBN 978-0-13-110362-7, ISBN 0-262-13472-9, ISSN 0378-5955",
        "tel: 2026-09-27, phone 3.14159265, call 1.2.3.4",
        "sold 250 000 mobile. 100 200 3000 and 0431 35 06 90 without a word",
        "call 12 and 34567, then 5",
        "population 1 234 567 890; 415-867-53091; #415-867-5309; $415.867.5309",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    ],
)
def test_not_found(text):
    assert found(text) == []


def test_numbers_one_after_the_other():
    assert [value for _, value in found("call 201-938-5500 201-938-5501 415-867-5309x7")] == [
        "201-938-5500",
        "201-938-5501",
        "415-867-5309x7",
    ]


def test_redact_keeps_everything_else():
    text = "a jane@acme.com b +44 20 7946 0018 c"
    assert personal.redact(text, personal.find(text)) == "a <email> b <phone> c"


@given(st.text(alphabet="a@.com1234 +-():/GB\n", max_size=200))
def test_spans_are_in_order_apart_and_gone_after_redaction(text):
    spans = personal.find(text)
    for before, after in pairwise(spans):
        assert before.end <= after.start
    assert all("\n" not in text[span.start : span.end] for span in spans)
    redacted = personal.redact(text, spans)
    assert len(redacted) == len(text) + sum(len(span.type) + 2 - (span.end - span.start) for span in spans)


@given(st.integers(0, 10**15 - 1))
def test_luhn_finds_every_wrong_digit(number):
    body = f"{number:015d}"
    valid = [digit for digit in "0123456789" if payment_cards.luhn(body + digit)]
    assert len(valid) == 1


@pytest.mark.parametrize(
    "part", ["12 ", "1 201-938-5500 ", "(", "1-", "1.2.3.", "a@", "x@a.", "::1", "GB82 WEST ", "tel ", "(3)1.+ 6", "4111 "]
)
def test_a_page_of_one_thing_costs_one_pass(part, growth):
    # A pattern that goes back and forth takes 16 times as long, or never ends.
    assert growth(lambda characters: personal.find(part * (characters // len(part))), 15_000) < 8


GOLD = {"EMAIL_ADDRESS": "email", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "IP_ADDRESS": "ip_address",
        "PHONE_NUMBER": "phone", "US_SSN": "ssn"}  # fmt: skip
DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_labelled_texts():
    path = DATA / "safety" / "pii_spans_2109.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    right, wrong, missed = Counter(), Counter(), Counter()
    for row in json.loads(gzip.decompress(path.read_bytes())):
        gold = {(span["start_position"], span["end_position"], GOLD[span["entity_type"]])
                for span in row["spans"] if span["entity_type"] in GOLD}  # fmt: skip
        got = {tuple(span) for span in personal.find(row["full_text"])}
        right.update(span[2] for span in gold & got)
        wrong.update(span[2] for span in got - gold)
        missed.update(span[2] for span in gold - got)
    for type_ in GOLD.values():
        precision, recall = (0.90, 0.85) if type_ == "phone" else (0.98, 0.97)
        assert right[type_] >= precision * (right[type_] + wrong[type_])
        assert right[type_] >= recall * (right[type_] + missed[type_])

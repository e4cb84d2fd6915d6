from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import personal


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
    ],
)
def test_not_found(text):
    assert found(text) == []


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
    valid = [digit for digit in "0123456789" if personal.luhn(body + digit)]
    assert len(valid) == 1

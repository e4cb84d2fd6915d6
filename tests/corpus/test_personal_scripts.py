"""Personal data in scripts that write no space beside a number, and in other digits."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundup.corpus.annotate import personal

REDACTED = [
    ("zh", "请联系<email>谢谢", "zhang.wei@firma.cn"),
    ("ja", "お問い合わせは<email>までお願いします", "taro@firma.jp"),
    ("ja", "メール：<email>", "taro＠firma.jp"),
    ("th", "ติดต่อ<email>ได้", "somchai@firma.co.th"),
    ("ko", "이메일은 <email>로 보내세요", "kim@firma.co.kr"),
    ("de", "an <email>", "müller@bäcker.de"),
    ("ru", "почта <email>", "иван@почта.рф"),
    ("zh", "电话<phone>", "13812345678"),
    ("zh", "联系电话：<phone>", "13812345678"),
    ("zh", "我的手机号码是<phone>。", "13812345678"),
    ("ja", "電話番号は<phone>です", "03-3581-4111"),
    ("ja", "<phone>まで", "０３－３５８１－４１１１"),
    ("ja", "<phone>まで", "03−3581−4111"),
    ("ko", "대표전화는 <phone>입니다", "02-312-1234"),
    ("ja", "電話<phone>", "+81-3-3581-4111"),
    ("ja", "カード番号は<card>です", "4111111111111111"),
    ("fa", "کارت <card>", "۴۱۱۱ ۱۱۱۱ ۱۱۱۱ ۱۱۱۱"),
    ("ja", "IBANは<iban>です", "DE89370400440532013000"),
    ("zh", "身份证号码是<national_id>。", "110101199003078515"),
    ("ja", "私のマイナンバーは<national_id>です", "123456789018"),
    ("ja", "IP：<ip_address>から", "203.0.114.77"),
]


@pytest.mark.parametrize(("language", "expected", "value"), REDACTED)
def test_found_beside_letters(language, expected, value):
    name = expected[expected.index("<") : expected.index(">") + 1]
    text = expected.replace(name, value)
    assert personal.redact(text, personal.find(text, language)) == expected


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "版本103.0.5060.114的Chrome"), ("ja", "2011年12月11日14時46分 電話は"), ("zh", "共130万人2020年10月"),
        ("zh", "第12345678号"), ("zh", "2020-2021学年第１学期"), ("ja", "バージョン10.215.7.19を"), ("ja", "ページー5ー"),
        ("zh", "价格1380-0138-000元"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_personal_data(language, text):
    assert personal.find(text, language) == []


@given(st.text(st.sampled_from("1٣５ー−－＠@.a电ก가+() 𝟐\ud800")))
@example("ー")
@example("1ー1")
def test_the_text_that_the_patterns_read_is_as_long(text):
    read = personal.as_read(text)
    assert len(read) == len(text)
    assert all(given == other for given, other in zip(text, read, strict=True) if given.isascii())
    assert all(str(unicodedata.decimal(given)) == other for given, other in zip(text, read, strict=True) if given in "1٣５")
    personal.find(text, "zh")

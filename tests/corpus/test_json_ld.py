"""The article that a page states in JSON-LD is found, whatever is written there, and says which blocks are of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.extract.json_ld import shares_stated, stated_article
from groundup.corpus.extract.page_text import parse

BODY = "Of bees much is known; “wasps” are less so."


def page(body: str) -> bytes:
    return f"<script type='application/ld+json'>{json.dumps({'@type': 'NewsArticle', 'articleBody': body})}</script>".encode()


@pytest.mark.parametrize(
    "source, text",
    [
        (page(BODY), BODY),
        (page("<p>Of bees</p>").replace(b'": "', b'" :\n"'), " Of bees "),
        (page("Bees &amp; wasps"), "Bees & wasps"),
        (page("short") + page("the longer of two"), "the longer of two"),
        (b'{"articleBody": "Of bees\nmuch"}', "Of bees\nmuch"),  # a line end that JSON does not allow
        (b'{"articleBody": "Of \\q bees"}', "Of \\q bees"),
        (b'{"articleBody": {"text": "no string"}}', ""),
        (b'{"articleBody": "without an end', ""),
        (b"<div itemprop='articleBody'>", ""),
    ],
)
def test_the_stated_article_is_found(source, text):
    assert stated_article(source) == text


@given(st.binary(max_size=60), st.text(max_size=60))
def test_whatever_stands_there_is_text(junk, body):
    assert isinstance(stated_article(b'{"articleBody": "' + junk + b'"}'), str)
    assert stated_article(page(body.replace("<", "").replace("&", "").encode("utf-8", "ignore").decode())) is not None


def test_blocks_are_known_by_three_words_in_a_row():
    shares = shares_stated(["Of BEES much is known", "Bees of known much", "much", "", "Read of bees much is"], BODY)
    assert shares[:4] == [1.0, 0.0, 0.0, 0.0] and 0 < shares[4] < 1


def test_a_parsed_page_has_its_title_and_what_it_states():
    _, blocks = parse(b"<title>Bees</title><body><p>Of bees</p>" + page(BODY))
    assert (blocks.title, blocks.stated, blocks.text) == ("Bees", BODY, ["Of bees"])

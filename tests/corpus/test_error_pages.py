"""A page that is only an error gives nothing; a page about errors gives its text."""


import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.error_pages import SCRIPT, is_error_page
from groundup.corpus.extract.page_text import extract, parse

ERRORS = [
    "404", "404 Not Found", "Error 404 (Not Found)!!", "Page not found | A site", "404 - Page Not Found", "HTTP 503",
    "403 Forbidden",
    "The page could not be found", "Seite nicht gefunden – Zeitung", "Page introuvable", "Página no encontrada",
    "Pagina non trovata", "Nie znaleziono strony", "Страница не найдена", "页面不存在", "Just a moment...", "Access Denied",
]  # fmt: skip
TITLES = [
    "404 pages that we love", "Found: a page of Shakespeare", "403 people were counted", "How 500 bees live", "The lost page",
    "A moment of rest", "Error bars, explained",
]  # fmt: skip
PROSE = "The server answers with this number when nothing lies under the address that was asked for, which may have moved. "


def page(title: str, text: str, heading: bool) -> str:
    head = f"<h1>{title}</h1>" if heading else f"<title>{title}</title>"
    return f"{head}<ul><li><a href=/>Home</a><li><a href=/s>Search our pages</a></ul><p>{text}</p>"


@pytest.mark.parametrize("title", ERRORS)
@given(st.booleans(), st.sampled_from(["", "Sorry, the page you look for is not here; try our search or go back home."]))
def test_an_error_page_gives_nothing(title, heading, text):
    assert extract(Page("http://a.org/", "text/html", page(title, text, heading).encode(), "utf-8")).text == ""


@pytest.mark.parametrize("title", TITLES)
@given(st.booleans())
def test_a_title_with_a_number_is_no_error(title, heading):
    assert not is_error_page(parse(page(title, "", heading))[1])


@pytest.mark.parametrize("title", ERRORS)
def test_a_page_about_errors_is_content(title):
    assert not is_error_page(parse(page(title, PROSE * 6, True))[1])


@given(st.lists(st.sampled_from(["Please enable", "JavaScript", "to go on", "of bees", "\n"]), max_size=8))
def test_a_line_asks_for_javascript_in_whatever_order_its_words_stand(parts):
    text = " ".join(parts)
    asks = any("JavaScript" in line and "enable" in line for line in text.split("\n"))
    assert (SCRIPT.search(text) is not None) == asks


def test_a_long_line_is_searched_once_for_what_asks_for_javascript(growth):
    def search(words: int) -> None:
        text = "word " * words
        for _ in range(20):
            SCRIPT.search(text)

    assert growth(search, 400) < 8  # from each of its places it would be 16 times

"""Pages that are no page, by kind, language and layout: they give nothing; and what looks like them a little gives its text."""

import json
from pathlib import Path

import pytest

from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.page_text import extract

KINDS = json.loads(Path(__file__).with_name("error_pages.json").read_text(encoding="utf-8"))
MENUS = KINDS.pop("menu")
PROSE = (
    "The keeper opened the gate of the garden before sunrise and counted the hives along the wall. Eleven were awake, one was "
    "silent, and the frost lay white on its roof. He lifted the lid, listened, and wrote in his book what he had heard. "
)


def page(kind: str, language: str, plain: bool, more: str = "") -> bytes:
    """`plain`: laid out with `div` alone, by which no menu tells itself apart."""
    title, heading, *lines = KINDS[kind][language] if kind in KINDS else ["Site", "", ""]
    links = "".join(f"<li><a href=/{place}>{name}</a>" for place, name in enumerate(MENUS[language]))
    text = "".join(f"<p>{line}</p>" for line in lines)
    middle = {
        "login": f"<form><label>@</label><input><button>{title}</button></form>{text}",
        "cookies": f"{text}<button>OK</button><a href=/o>{MENUS[language][6]}</a>",
        "tags": f"<ul>{links * 6}</ul>",
    }.get(kind, text)
    body = (f"<h1>{heading}</h1>" if heading else "") + middle + more
    if plain:
        body = f"<div class=top><ul>{links}</ul></div><div class=middle>{body}</div><div>© 2024 <ul>{links}</ul></div>"
    else:
        body = f"<header><nav><ul>{links}</ul></nav></header><main>{body}</main><footer><ul>{links}</ul></footer>"
    return f"<!doctype html><html lang={language}><meta charset=utf-8><title>{title}</title><body>{body}</html>".encode()


def text_of(body: bytes) -> str:
    return extract(Page("http://a.org/x", "text/html", body, "utf-8")).text


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "menu"])
def test_it_gives_nothing_in_any_language(kind, plain):
    found = {language: text_of(page(kind, language, plain)) for language in MENUS}
    assert {language: text for language, text in found.items() if text} == {}


@pytest.mark.parametrize("kind", [*KINDS, "menu"])
def test_with_much_text_it_is_a_page(kind):
    assert PROSE.strip() in text_of(page(kind, "en", False, f"<p>{PROSE}</p>" * 1 + f"<p>{PROSE * 3}</p>"))


def test_a_page_with_a_notice_is_read():
    for kind in ("cookies", "script"):
        assert PROSE.strip() in text_of(page(kind, "de", True, f"<p>{PROSE}</p>"))


def test_a_list_of_things_is_no_menu():
    things = "".join(f"<li><a href=/{place}>Wallet of brown leather, number {place}</a>" for place in range(20))
    cookies = page("cookies", "en", True, f"<h1>Wallets</h1><ul>{things}</ul>")
    assert "leather, number 7" in text_of(cookies)
    few = "".join(f"<li><a href=/{name}>{name}</a> (4)" for name in ("Radios", "Power banks", "Lamps"))
    assert "Lamps" in text_of(f"<title>Shop</title><main><h1>Electronics and gadgets</h1><ul>{few}</ul></main>".encode())


@pytest.mark.parametrize(
    "text",
    [
        "JavaScript is a language; every browser runs it, and since 2009 servers do too, as its makers never thought it would.",
        "Cookies: mix butter, flour and sugar, add an egg, and bake them for twelve minutes until their edges are brown.",
    ],
)
def test_a_short_page_about_the_same_is_no_notice(text):
    assert text in text_of(f"<title>Short</title><h1>Short</h1><p>{text}</p>".encode())


@pytest.mark.parametrize("title", ["The login that nobody found", "Register of ships", "Bees: a search", "Tags of dogs in Rome"])
def test_titles_that_hold_such_a_word_are_titles(title):
    assert PROSE.strip() in text_of(f"<title>{title}</title><h1>{title}</h1><p>{PROSE}</p>".encode())

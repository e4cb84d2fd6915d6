"""An article ends where it ends: lines to elsewhere, appeals, bylines and what comes after; and twin content is read once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.extract.article_body import APPEAL, BY_WHOM, ELSEWHERE, ENDS, article_alone, first_occurrences
from groundup.corpus.extract.blocks import Blocks
from groundup.corpus.extract.page_text import parse

PROSE = "Of bees much is known, as they live near us and were kept for their honey; of wasps, which sting, far less is known."
ARTICLE = "".join(f"<p>{number} {PROSE}</p>" for number in range(6))
LINES = {
    ELSEWHERE: ["Read more: Bees of the north", "RELATED: Wasps", "Lesen Sie auch: Bienen", "Mehr zum Thema",
                "Lire aussi : Abeilles", "Te puede interesar: Abejas", "Leggi anche: Api", "Leia também", "Lees ook",
                "Czytaj także: Pszczoły", "DON'T MISS"],
    APPEAL: ["Sign up for our newsletter", "Follow us on Twitter", "Abonnieren Sie uns", "Abonnez-vous", "Suscríbete",
             "Iscriviti"],
    BY_WHOM: ["Photo: A. Smith", "Published on 3 May 2020", "Aktualisiert am 3.5.2020", "Publié le 3 mai", "(Reporting by Ann)"],
    ENDS: ["About the author", "About Bees Inc", "Comments", "Kommentare", "Über die Autorin", "Comentarios", "Sources:"],
}  # fmt: skip
STAY = [
    "Readers of the paper agree", "Relatedness of bees", "Follow the bees", "Signs of spring",
    "About bees little is known so far",
    "Commentators were silent", "Photography of bees", "Sourced from the north", "Published work on bees", "Lesen ist schön",
]  # fmt: skip


def kept(body: str, half_sure: str = "") -> list[str]:
    """Texts that stay, all blocks being sure but those that begin with `half_sure`."""
    _, blocks = parse(f"<body><div>{body}</div></body>")
    probability = np.array([0.5 if half_sure and text.startswith(half_sure) else 0.95 for text in blocks.text])
    words = np.array([len(text.split()) for text in blocks.text], dtype=float)
    keep = article_alone(blocks, probability, words, np.ones(len(words), dtype=bool))
    return [blocks.text[at] for at in np.flatnonzero(keep)]


@pytest.mark.parametrize("line", [line for kind in (ELSEWHERE, APPEAL, BY_WHOM) for line in LINES[kind]])
def test_lines_that_are_no_part_of_the_article_go(line):
    assert len(kept(f"{ARTICLE}<p>{line}</p>{ARTICLE}")) == 12


@given(st.sampled_from(LINES[ENDS]), st.sampled_from(["h3", "p", "div"]))
def test_what_comes_after_the_end_goes(line, tag):
    assert len(kept(f"{ARTICLE}<{tag}>{line}</{tag}><p>{PROSE}</p>")) == 6


@given(st.sampled_from(STAY))
def test_ordinary_lines_stay(line):
    assert not any(pattern.match(line) for pattern in LINES)
    assert len(kept(f"{ARTICLE}<p>{line}</p><p>{PROSE}</p>")) == 8


@given(st.sampled_from(LINES[ENDS]))
def test_an_end_in_the_middle_is_none(line):
    assert len(kept(f"<p>{line}</p>{ARTICLE}<p>{line}</p>{ARTICLE}")) == 14


def test_on_an_article_page_what_is_half_sure_goes_but_not_elsewhere():
    teaser = "<aside><div><p>Teaser of wasps in the north</p></div></aside>"
    assert len(kept(ARTICLE + teaser, "Teaser")) == 6
    posts = "".join(f"<div><div><p>{number} {PROSE}</p></div></div>" for number in range(6))  # no element holds most
    assert len(kept(posts + teaser, "Teaser")) == 7


def test_the_lead_of_an_article_stays():
    assert kept(f"<p class=lead>Lead of wasps</p>{ARTICLE}", "Lead")[0] == "Lead of wasps"


@given(st.integers(1, 12), st.booleans())
def test_a_text_in_two_places_is_read_once(size, same_place):
    text = " ".join(["word"] * size)
    page = f"<div><p>{text}</p><p>{text}</p></div>" if same_place else f"<div><p>{text}</p></div><div><p>{text}</p></div>"
    _, blocks = parse(page)
    keep = first_occurrences(blocks, np.full(2, float(size)), np.ones(2, dtype=bool))
    assert keep.tolist() == [True, same_place or size < 8]


@given(st.lists(st.tuples(st.sampled_from(["p", "li", "h2", "blockquote"]), st.floats(0, 1), st.integers(0, 40)), max_size=12))
def test_nothing_is_added_but_a_lead(rows):
    _, blocks = parse("".join(f"<{tag}>a{' word' * size}</{tag}>" for tag, _, size in rows))
    if isinstance(blocks, Blocks) and blocks.text:
        probability = np.array([row[1] for row in rows])[: len(blocks.text)]
        probability = np.pad(probability, (0, len(blocks.text) - len(probability)))
        keep = probability > 0.5
        assert not (article_alone(blocks, probability, np.full(len(keep), 9.0), keep.copy()) & ~keep).any()

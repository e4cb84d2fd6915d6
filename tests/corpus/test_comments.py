"""Readers' comments, by setting: kept with `comments`, without their forms, names and links."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.article_body import article_alone
from groundup.corpus.extract.comments import comments_of
from groundup.corpus.extract.page_text import extract, parse

PROSE = "Of bees much is known, as they live near us and were kept for their honey; of wasps, which sting, far less is known. "
ARTICLE = f"<h1>Bees and wasps</h1><article>{f'<p>{PROSE * 3}</p>' * 4}</article>"
SAID = "I once kept wasps in a shed and they were no trouble, says the reader."
AROUND = ["<div id=comments>%s</div>", "<ol class=comment-list>%s</ol>", "<section class='kommentare'>%s</section>",
          "<div class=post-comments><div class=comment-body>%s</div></div>", "<div itemprop=comment>%s</div>"]  # fmt: skip
NO_COMMENTS = ["<p class=comments-link>%s</p>", "<div class=no-comments>%s</div>", "<div class=comment-count>%s</div>"]


def read(body: str, comments: bool) -> str:
    return extract(Page("http://a.org/", "text/html", f"<body class=comments-open>{body}</body>".encode()), comments).text


@pytest.mark.parametrize("around", AROUND)
def test_comments_are_read_by_setting(around):
    said = (
        f"<h3>12 comments</h3><div class=comment-author>Ann</div><time>1 May 2020</time><p>{SAID}</p>"
        "<a href=/r>Reply to Ann here</a>"
        "<form><p>Your address will not be published, we promise.</p></form>"
    )
    _, blocks = parse(f"<body class=comments-open>{ARTICLE}{around % said}</body>")
    assert [blocks.text[at] for at in comments_of(blocks)] == [SAID]
    text = read(ARTICLE + around % said, comments=True)
    assert "Of bees much is known" in text and text.count(SAID) == 1


@given(st.sampled_from([*NO_COMMENTS, "<div class=commentary>%s</div>", "<div>%s</div>"]))
def test_only_sections_of_comments_are_comments(around):
    _, blocks = parse(f"<body class=comments-open>{ARTICLE}{around % f'<p>{SAID}</p>'}</body>")
    assert comments_of(blocks) == []


@given(st.lists(st.sampled_from(AROUND + NO_COMMENTS), max_size=4), st.text("ab <>/", max_size=30))
def test_comments_add_and_never_take(around, said):
    page = ARTICLE + "".join(outer % f"<p>{said}</p>" for outer in around)
    assert set(read(page, False).split()) <= set(read(page, True).split())


# A short article, and what readers wrote under it: too few words for an element to be an article's body by its surest text.
SHORT = (
    "The council of the town voted on Tuesday to close the old bridge for two months while workers replace its wooden deck, "
    "which was laid in 1931. Traffic will be led over the northern road, and buses will stop at the market. Shops near the "
    "river said they expect fewer guests. The mayor called the plan overdue."
)
READERS = ["I drive over that bridge every day and nobody asked us about it, typical of this council.",
           "About time, the planks were rotten when I was a child.",
           "Why not build a new one beside it instead of closing the road for months?"]  # fmt: skip
PIECES = {
    "blog": "<article class=post><h1>Old bridge</h1><div class=entry-content>{piece}</div></article>"
    "<div id=comments class=comments-area><ol class=comment-list>{said}</ol></div>",
    "only article": "<article><h1>Old bridge</h1>{piece}</article><div class=comments>{said}</div>",
    "by property": "<main><h1>Old bridge</h1><div itemprop=articleBody>{piece}</div><ul class=comments>{said}</ul></main>",
    "heading": "<div><h1>Old bridge</h1>{piece}<section class=comments><h3>{begin}</h3>{said}</section></div>",
}
BEGINNINGS = ["Comments", "3 comments", "2 thoughts on it", "Kommentare (3)", "3 commentaires", "Comentarios", "Commenti",
              "Reacties", "Komentarze", "Leave a reply"]  # fmt: skip
FORUM = ["<div class=topic-body><div class=post><h1>Old bridge</h1>{piece}</div><div class=comments>{said}</div></div>",
         "<div class=forum><article class=entry><h1>Old bridge</h1>{piece}</article><div class=comments>{said}</div></div>",
         "<div class=question><h1>Old bridge</h1>{piece}</div><h3>Comments</h3><ul class=comments>{said}</ul>"]  # fmt: skip


def filled(page: str, words: int, readers: int, begin: str = "Comments") -> str:
    said = "".join(f"<li class=comment><p>{text}</p></li>" for text in READERS[:readers])
    return page.format(piece=f"<p>{' '.join(SHORT.split()[:words])}</p>", said=said, begin=begin)


def kept(body: str) -> str:
    """What stays where all blocks are nearly sure."""
    _, blocks = parse(f"<body>{body}</body>")
    words = np.array([len(text.split()) for text in blocks.text], dtype=float)
    keep = article_alone(blocks, np.full(len(words), 0.85), words, np.ones(len(words), dtype=bool))
    return "\n".join(blocks.text[at] for at in np.flatnonzero(keep))


@given(st.sampled_from(list(PIECES)), st.integers(25, 55), st.integers(1, 3), st.sampled_from(BEGINNINGS))
def test_comments_under_a_short_piece_go(shape, words, readers, begin):
    text = kept(filled(PIECES[shape], words, readers, begin))
    assert "The council of the town" in text and not any(said in text for said in READERS)


@given(st.sampled_from(FORUM), st.integers(25, 55), st.integers(1, 3))
def test_posts_of_a_forum_stay_whatever_they_are_named(page, words, readers):
    text = kept(filled(page, words, readers))
    assert all(said in text for said in READERS[:readers])


@pytest.mark.parametrize("shape", PIECES)
def test_a_page_of_a_short_piece_is_read_without_its_comments_but_by_setting(shape):
    page = filled(PIECES[shape], 55, 3)
    assert "The council of the town" in read(page, False) and READERS[0] not in read(page, False)
    assert all(read(page, True).count(said) == 1 for said in READERS)

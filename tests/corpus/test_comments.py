"""Readers' comments, by setting: kept with `comments`, without their forms, names and links."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.archive.warc import Page
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

"""Broken HTML: mutations of real pages where there are some, and of small ones everywhere."""

import os
import random
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.extract.content import content_model
from groundup.corpus.extract.page_text import decode, text_of

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[2] / "../shared/data")) / "web"
SNIPPETS = [
    "<", ">", "</", "<!--", "-->", '"', "'", "<table>", "</div>", "<script>", "<b a=", "&#x110000;", "\x00", "<![CDATA[",
    "<p>" * 50, "<math>", "</body>", "<frameset>", "<svg><p>", "<template>", "<plaintext>", "<select><tr>", "<a><a>", "\ud800",
]  # fmt: skip


def broken(html: str, dice: random.Random) -> str:
    """`html` with a few places cut out, doubled, overwritten or stripped of what should end them."""
    for _ in range(dice.randint(1, 8)):
        start = dice.randint(0, len(html))
        end = min(len(html), start + dice.choice([1, 10, 300, 20_000]))
        before, part, after = html[:start], html[start:end], html[end:]
        change = dice.choice(["cut", "double", "overwrite", "unend", "move"])
        if change == "double":
            part *= 3
        elif change == "overwrite":
            part = dice.choice(SNIPPETS) * dice.choice([1, 1, 30])
        elif change == "unend":
            before = before.replace(dice.choice(["</div>", "</p>", "</a>", '"', "-->", "</script>"]), "")
        elif change == "move":
            before, part = part, before
        html = before + after if change == "cut" else before + part + after
    return html


def check(html: str) -> None:
    text_of(html, content_model()).text.encode()


@pytest.mark.skipif(not DATA.exists(), reason=f"no real pages in {DATA}")
def test_mutated_real_pages_neither_crash_nor_hang(within_a_minute):
    pages = [decode(page) for page in read_pages(DATA / "pages-dev-01.warc.gz", Losses())][::15]
    dice = random.Random(0)
    for _ in range(10):
        for page in pages[:12]:
            check(broken(page, dice))


SMALL = "<html><head><title>t</title></head><body><nav><a href=x>m</a></nav><main><h1>T</h1><p>Some words, and more.</p></main>"


@settings(deadline=timedelta(minutes=1))
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=20), max_size=20))
def test_mutated_small_pages_neither_crash_nor_hang(dice, pieces):
    check(broken(SMALL + "".join(pieces), dice))

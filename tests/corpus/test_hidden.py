"""What a reader does not see is no text: hidden elements, soft hyphens, the numbers of lines of code. And lists are whole."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.blocks import blocks_of, render
from groundup.corpus.extract.page_text import extract


def everything(page: str) -> str:
    found = blocks_of(LexborHTMLParser(page))
    return render(found, list(range(len(found.text))))


HIDDEN = [
    "<div hidden>%s</div>", "<p hidden=''>%s</p>", "<div style='display:none'>%s</div>",
    "<div style='color: red; DISPLAY : none'>%s</div>",
    "<span style='display:none!important'>%s</span>", "<noscript>%s</noscript>", "<noscript><p>%s</p></noscript>",
    "<section hidden class=modal><h2>%s</h2></section>", "<ul style='display:none'><li>%s</ul>",
    "<div style='visibility:hidden'>%s</div>", "<div style='Visibility : Collapse ; color:red'>%s</div>",
    "<div style='display:/* old */none'>%s</div>", "<div style='display:none!important;display:block'>%s</div>",
]  # fmt: skip
WAITING = [
    "<div role=tabpanel hidden>%s</div>", "<div hidden=until-found>%s</div>",
    "<div class='faq__answer' style='display:none'>%s</div>",
    "<div id=S:3 hidden>%s</div>", "<dd aria-labelledby=b1 hidden>%s</dd>", "<div class=accordion-panel hidden>%s</div>",
    "<details><summary>a</summary>%s</details>", "<div style='max-height: none'>%s</div>", "<div class=hidden>%s</div>",
    "<div hidden><main>%s</main></div>",
    "<div style='display:none;display:block'>%s</div>", "<div style='--card-display:none'>%s</div>",
    "<div style='background:url(a?display:none)'>%s</div>", "<div style='backface-visibility:hidden'>%s</div>",
    "<div style='opacity:0'>%s</div>", "<div style='position:absolute;left:-999px'>%s</div>",
]  # fmt: skip


@pytest.mark.parametrize("wrap", HIDDEN)
def test_what_is_hidden_is_gone(wrap):
    assert everything(f"<body><p>before</p>{wrap % 'SECRET'}<p>after</p>") == "before\n\nafter"


def test_what_is_long_and_only_without_visibility_stays():
    long = "These WORDS are shown when they are in their place. " * 10
    assert "WORDS" in everything(f"<body><p>before</p><div style='visibility:hidden'>{long}</div><p>after</p>")


@pytest.mark.parametrize("wrap", WAITING)
def test_what_a_click_shows_stays(wrap):
    assert "WORDS" in everything(f"<body><p>before</p>{wrap % 'WORDS'}<p>after</p>")


CARDS = [
    "<span class=tooltiptext>%s</span>", "<span role=tooltip>%s</span>", "<div class='card hovercard'><p>%s</p></div>",
    "<span class=rollover-block><a href=/p>%s</a></span>", "<div popover id=m>%s</div>",
]  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
@given(st.sampled_from(["<b class=tooltip>Governor</b>", "<a class=rollover-people-link>Governor</a>", "Governor"]))
def test_what_shows_under_the_pointer_is_apart_from_the_text(card, word):
    found = everything(f"<body><p>The {word}{card % 'SECRET'} spoke.</p>")
    assert "SECRET" not in found and "The Governor" in found and "spoke." in found


def test_a_page_that_a_script_is_to_show_stays():
    words = "Of bees, much is known; of wasps less. " * 50
    for wrap in ("<div style='display:none'>%s</div>", "<noscript>%s</noscript>"):
        assert "much is known" in everything(f"<body><p>Loading</p><script>{'x' * 9000}</script>" + wrap % words)


NESTED = [wrap for wrap in HIDDEN if "<p" not in wrap]  # a paragraph ends where another begins


@given(st.text("abc ", max_size=20), st.lists(st.sampled_from(NESTED), min_size=1, max_size=4), st.sampled_from(WAITING))
def test_hidden_in_anything_is_gone(text, wraps, outer):
    page = "SECRET"
    for wrap in wraps:
        page = wrap % (text + page)
    found = everything(f"<body><p>before</p>{outer % (text + page)}<p>after</p>")
    assert "SECRET" not in found and found.startswith("before") and found.endswith("after")


def test_soft_hyphens_go():
    said = "This sentence of an article is %s, and it is no menu."
    for kind, word in (("text/html", "hy&shy;phen\u00adated"), ("text/plain", "hy\u00adphen\u00adated")):
        body = f"<p>{said % word}</p>" if kind == "text/html" else said % word
        assert extract(Page("http://a.org/", kind, body.encode(), "utf-8")).text == said % "hyphenated"


@pytest.mark.parametrize("word", ["漢<rt>かん</rt>字<rt>じ</rt>", "<rb>漢字</rb><rp>(</rp><rt>かんじ</rt><rp>)</rp>"])
def test_how_a_word_is_read_stands_above_it_not_in_it(word):
    assert everything(f"<p>この<ruby>{word}</ruby>を読む。</p>") == "この漢字を読む。"


CODE = ["def f():", "    return 1", "", "x = f()  # 3", "        y"]
LINES = {
    "plain": ("<pre>%s</pre>", "%s\n"),
    "div": ("<pre>%s</pre>", "<div>%s</div>"),
    "code in div": ("<pre><code>%s</code></pre>", "<div><span>%s</span></div>"),
    "p": ("<pre>%s</pre>", "<p>%s</p>"),
    "li": ("<pre><ol>%s</ol></pre>", "<li>%s</li>"),
    "line": ("<pre><code>%s</code></pre>", "<span class=line>%s</span>"),
    "line with its end": ("<pre><code>%s</code></pre>", "<span class=line>%s\n</span>"),
    "block": ("<pre>%s</pre>", "<span style='display: block'>%s</span>"),
    "code": ("<pre>%s</pre>", "<code>%s</code>"),
    "row": ("<pre><table>%s</table></pre>", "<tr><td>%s</td></tr>"),
    "br": ("<pre>%s</pre>", "%s<br>"),
}


@pytest.mark.parametrize("kind", LINES)
def test_lines_of_code_are_lines(kind):
    outer, line = LINES[kind]
    code = [text for text in CODE if text or kind in ("plain", "line with its end", "br")]  # an empty block is no line
    page = outer % "".join(line % text for text in code)
    assert everything(f"<body><p>a</p>{page}<p>b</p>") == "a\n\n" + "\n".join(code) + "\n\nb"


GUTTERS = {
    "span": ("<pre>%s</pre>", "<span>{n}</span>{text}\n"),
    "span and space": ("<pre>%s</pre>", "<span>{n:4}</span> {text}\n"),
    "lineno": ("<pre><span></span>%s</pre>", "<span class=linenos>{n:3} </span>{text}\n"),
    "link": ("<pre><code>%s</code></pre>", "<a class='lineno' href='#l{n}'>{n}</a>{text}\n"),
    "chroma": ("<pre><code>%s</code></pre>", "<span class=line><span class=ln>{n}</span><span class=cl>{text}\n</span></span>"),
    "row": ("<pre><table>%s</table></pre>", "<tr><td>{n}</td><td>{text}</td></tr>"),
    "counter": ("<pre>%s</pre>", "<span class=line data-line={n}>{text}</span>\n"),
}


@pytest.mark.parametrize("kind", GUTTERS)
@given(st.integers(1, 3000), st.lists(st.sampled_from([line for line in CODE if line]), min_size=2, max_size=6))
def test_numbers_beside_lines_of_code_go(kind, first, code):
    outer, line = GUTTERS[kind]
    code = ["def f():", *code]  # not all indented: that of all lines tells nothing
    rows = [line.format(n=number, text=html.escape(text)) for number, text in enumerate(code, first)]
    assert everything(f"<body><p>a</p>{outer % ''.join(rows)}<p>b</p>") == "a\n\n" + "\n".join(code) + "\n\nb"


@pytest.mark.parametrize(
    "numbers",
    [
        "<pre>1\n2\n3</pre>", "<div class=linenodiv><pre><span class=normal>1</span>\n<span>2</span>\n<span>3</span></pre></div>",
        "<pre><span class=line>1</span><br><span class=line>2</span><br><span class=line>3</span><br></pre>",
        "<pre class=lineno>1\n2\n3\n</pre>", "<div class=gutter>1<br>2<br>3</div>",
    ],
)  # fmt: skip
def test_a_column_of_numbers_goes(numbers):
    page = f"<table><tr><td>{numbers}</td><td class=code><pre>def f():\n    return 1\nx</pre></td></tr></table>"
    assert everything(page) == "def f():\n    return 1\nx"


@pytest.mark.parametrize(
    "page, text",
    [
        ("<pre>0\n1\n2</pre>", "0\n1\n2"),
        ("<pre><span>0</span>\n<span>1</span>\n<span>2</span></pre>", "0\n1\n2"),
        ("<pre><b>1</b> a\n<b>3</b> b</pre>", "1 a\n3 b"),
        ("<pre>1 a\n2 b</pre>", "1 a\n2 b"),
        ("<pre><b>1</b> a\nb</pre>", "1 a\nb"),
        ("<div class=gutter>Column 3</div>", "Column 3"),
        ("<table><tr><td><pre>1\n2</pre></td><td><pre>a\nb\nc</pre></td></tr></table>", "1\n2 | a\nb\nc"),
    ],
)
def test_numbers_that_are_content_stay(page, text):
    assert everything(page) == text


PROSE = "<p>A paragraph of some length about how the thing is used in practice, and why it matters to people.</p>"


@given(
    st.lists(st.text("abcdefgh ", min_size=3, max_size=25), min_size=2, max_size=3),
    st.booleans(),
    st.sampled_from(["<main>%s</main>", "<article>%s</article>", "<div id=content>%s</div>", "%s"]),
    st.sampled_from([(PROSE, PROSE), (PROSE, ""), ("<h2>Links</h2>", PROSE), ("<p>Of bees, much is known.</p>", "")]),
)
def test_a_list_of_three_is_kept_or_dropped_as_one(items, links, outer, around):
    marked = [f"q{number}q {item}" for number, item in enumerate(items)]
    listed = "".join(f"<li><a href=/{n}>{item}</a></li>" if links else f"<li>{item}</li>" for n, item in enumerate(marked))
    page = outer % f"<h1>Title</h1>{around[0]}<ul>{listed}</ul>{around[1]}"
    text = extract(Page("http://a.org/", "text/html", f"<body><nav><a>Home</a></nav>{page}<footer>x</footer>".encode())).text
    assert sum(f"q{number}q" in text for number in range(len(items))) in (0, len(items))

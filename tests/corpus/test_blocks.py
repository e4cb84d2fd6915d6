import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from groundup.corpus.extract import blocks as module
from groundup.corpus.extract import limits
from groundup.corpus.extract.blocks import NO_TEXT, blocks_of, render
from groundup.corpus.extract.limits import MAX_DEPTH, bounded


def blocks(html: str):
    return blocks_of(LexborHTMLParser(html))


def everything(html: str) -> str:
    found = blocks(html)
    return render(found, list(range(len(found.text))))


@pytest.mark.parametrize(
    "html, text",
    [
        ("<p>a  <b>b</b>c\n d</p>e", "a bc d\n\ne"),
        ("<p>a<br>b<br><br>c", "a\nb\n\nc"),
        ("<div>a</div><div>b<h2>c</h2>d</div>", "a\nb\n\nc\n\nd"),
        ("<p>1 &lt; 2 &amp;amp; x&nbsp;y", "1 < 2 &amp; x y"),
        ("<p>a</p><script>b</script><style>c</style><!-- <p>d</p> --><template>e</template><p>f", "a\n\nf"),
        ("<noscript><p>a</p></noscript>", "a"),
        ("<img alt='<p>a'><p title='>b'>c", "c"),
        ("<xmp><p>a</xmp>b", "a\nb"),
        ("", ""),
    ],
)
def test_paragraphs_lines_and_what_is_no_text(html, text):
    assert everything(html) == text


def test_lists_have_marks_numbers_and_indents():
    html = "<ul><li>a<ul><li>b</ul><li><p>c</p><p>d</p></ul><ol><li>e<li>f</ol>"
    assert everything(html) == "- a\n\n  - b\n\n- c\n\nd\n\n1. e\n2. f"


def test_cells_of_a_row_share_a_line():
    html = "<table><tr><th>a<th>b<tr><td>1<td><p>2</p></table><table><tr><td>c</table>"
    assert everything(html) == "a | b\n1 | 2\n\nc"


@pytest.mark.parametrize(
    "html",
    [
        "<pre>def f():\n    return 1\n\n\n#  x</pre>",
        "<pre><code>\ndef f():\n    return <span class=n>1</span>\n\n\n#  x\n</code></pre>",
        "<pre><div>def f():</div><div>    return 1</div><div>\n</div><div>\n</div><div>#  x</div></pre>",
        "<pre>def f():<br>    return 1<br><br><br>#  x</pre>",
    ],
)
def test_code_is_verbatim(html):
    assert everything(f"<p>a</p>{html}<p>b</p>") == "a\n\ndef f():\n    return 1\n\n\n#  x\n\nb"


TAGS = [
    "div",
    "p",
    "ul",
    "li",
    "table",
    "tr",
    "td",
    "a",
    "b",
    "span",
    "pre",
    "h1",
    "br",
    "img",
    "noscript",
    "form",
    "main",
    "xmp",
    "select",
    "option",
    "button",
    "script",
]
PIECES = st.one_of(
    st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]),
    st.sampled_from(
        ["<p class='a b'>", "<a href='x'>", "x", "y z", "<!-- c -->", "&lt;", "<", ">", "\n", '<i title=">"']
    ),
)


@given(st.lists(PIECES, max_size=40).map("".join))
def test_no_text_is_lost_and_elements_nest(html):
    tree = LexborHTMLParser(html)
    found = blocks_of(tree)
    for node in tree.css(NO_TEXT):
        node.decompose()
    if tree.body and "<xmp" not in html:
        assert "".join("".join(found.text).split()) == "".join(tree.body.text(deep=True).split())
    for block, element in enumerate(found.element):
        assert found.start[element] <= block < found.end[element]
    for element, parent in enumerate(found.parent):
        assert parent < element or element == 0
        assert found.start[parent] <= found.start[element] <= found.end[element] <= found.end[parent]


@pytest.fixture
def small_bounds(monkeypatch):
    """The guards are tried with pages that would do no harm without them."""
    for name, value in (("MAX_DEPTH", 40), ("MAX_ATTRIBUTES", 20), ("LONG_TAG", 60), ("MAX_LOOKED_AT", 2000)):
        monkeypatch.setattr(limits, name, value)


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 300,
        "<ul><li>" * 100,
        "<table><tr><td>" * 100,
        "".join(f"<font a{i}><div>" for i in range(60)),
        "".join(f"<div><b a{i}>x</div>" for i in range(100)),
        "".join(f"<b a{i}>" for i in range(50)) + "<p>x" * 50,
        "<div " + "".join(f" a{i}='{i}'" for i in range(50)) + ">x",
        ("<b a " * 100 + "a " * 18 + ">< " + "x" * 61) * 200,
        "<div a='<b>' " + "".join(f" a{i}='<'" for i in range(20)) + "".join(f" a{i}" for i in range(50)) + ">x",
    ],
)
def test_a_page_beyond_the_bounds_is_cut_off(html, small_bounds):
    source, cut = bounded(b"<p>before" + html.encode())
    assert cut and len(source) < len(html)
    assert blocks_of(LexborHTMLParser(source)).text[0] == "before"


@pytest.mark.parametrize("html", ["<p>a</p>" * 20, "<p>a</p>" * 20 + "<xmp>b</xmp>"])
def test_a_page_of_too_many_tags_says_that_it_is_cut(html, monkeypatch):
    monkeypatch.setattr(module, "MAX_TAGS", 50)
    assert not blocks("<p>a</p>" * 20).cut
    monkeypatch.setattr(module, "MAX_TAGS", 30)
    found = blocks(html)
    assert found.cut and set(found.text) == {"a"}


def test_navigation_goes_but_not_with_what_the_page_is_about():
    assert everything("<nav>a</nav><div role=dialog>b</div><header>c</header><footer>d</footer><p>e") == "e"
    assert everything("<nav>a<main>b</main></nav><header><h1>c</h1></header><footer><article>d") == "a\n\nb\n\nc\n\nd"


def test_raw_text_stays_but_for_dialogs():
    blocks = blocks_of(LexborHTMLParser("<body><xmp role=dialog>We use it</xmp><xmp>a > b</xmp><p>Text</p>"))
    assert blocks.text == ["a > b", "Text"]


def test_elements_are_known_by_their_classes_or_else_by_their_id():
    page = "<div id=' menu\n x' class=' '><p id=p1>a</p></div><div id=top class='one two'><p itemprop='Body\nText'>b</p></div>"
    words = {word for tag in blocks_of(LexborHTMLParser(f"<body>{page}")).kinds for word in tag.words}
    assert words == {"<body", "<div", "#menu", "<p", ".one", ".two", "itemprop=body text"}


def test_nested_navigation_takes_no_longer_than_other_elements(growth):
    def tree(depth):
        words = "<b>x</b> " * 25_000
        return LexborHTMLParser("<nav>" * depth + words + "<header>" * depth + words)

    trees = {depth: tree(depth) for depth in (200, 800)}
    assert blocks_of(trees[800]).text == []
    assert growth(lambda depth: blocks_of(trees[depth]), 200) < 2  # 4 where each word looks at all that it lies in


def test_ordinary_pages_are_not_cut():
    many = b"<p>a<br>b<img src=x><li>c" * 5_000 + b"<div><b>x</b></div>" * 5_000 + b"<p><b>x<p>y</b>" * 100
    assert bounded(many) == (many, False)
    data = b"<p>a<script>if (a <b) { " + b"x = 'y' + z ;" * 5_000 + b"}</script><pre>" + b"> words\n" * 5_000
    assert bounded(data) == (data, False)
    deep = b"<div>" * (MAX_DEPTH - 10) + b"x" + b"</div>" * (MAX_DEPTH - 10)
    assert bounded(deep * 3) == (deep * 3, False)


def test_blocks_between_the_chosen_still_part_paragraphs():
    found = blocks("<div>a</div><h2>b</h2><div>c</div>")
    assert render(found, [0, 2]) == "a\n\nc"
    assert not re.search(r"\n{3}", render(found, [0, 1, 2]))

import gzip
import json
import os
import pydoc
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.archive.warc import Losses, Page, read_pages
from groundup.corpus.extract.page_text import decode, extract

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[2] / "../shared/data")) / "web"


def html(body: str | bytes, charset: str | None = None):
    return extract(Page("http://a.org/", "text/html", body.encode() if isinstance(body, str) else body, charset))


class Sample(dict):
    """A mapping of samples.

    Example:

        if sample:
            print(sample)
    """

    def merge(self, other, *, deep=False):
        """Merge `other` into this one.

        Returns nothing.
        """


def test_pydoc_reads_like_help():
    writer = pydoc.HTMLDoc()
    page = writer.page("module sample", writer.docclass(Sample, "Sample", "sample"))
    text = html(page.replace("<title>Python: ", "<title>Pydoc: ")).text
    assert text.startswith(
        "class Sample(builtins.dict)\n"
        "    A mapping of samples.\n\n"
        "    Example:\n\n"
        "        if sample:\n"
        "            print(sample)\n\n"
    )
    assert (
        "\n    Methods defined here:\n\n"
        "    merge(self, other, *, deep=False)\n"
        "        Merge `other` into this one.\n\n"
        "        Returns nothing.\n\n"
    ) in text
    assert "\u00a0" not in text
    assert "\n\n\n" not in text
    assert not re.search(r"^\s*[|\-]+\s*$", text, re.MULTILINE)


def test_pydoc_page_has_no_menu_and_no_path_of_the_machine():
    page = (
        "<title>Pydoc: module m</title><div style='float:right'><a href=x>Module Index</a></div>"
        "<table class=heading><tr><td class=title>&nbsp;<br><strong class=title>m</strong></td>"
        "<td class=extra><a href='file:/home/me/m.py'>/home/me/m.py</a></td></tr></table>"
        "<p><span class=code>Does&nbsp;it.<br>\n&nbsp;&nbsp;Well.</span></p>"
        "<table class=section><tr><td class=section-title>&nbsp;<br><strong class=bigsection>Modules</strong></td></tr>"
        "<tr><td class=singlecolumn>re</td></tr></table>"
    )
    assert html(page).text == "m\n\nDoes it.\n  Well."


def test_main_content_with_code_lists_and_tables_but_no_menu():
    prose = "A paragraph of some length about how the thing is used in practice. " * 5
    page = (
        "<html><head><title> The\n thing </title><script>var x = 1;</script><style>p {}</style></head><body>"
        "<nav><ul><li><a href=/>Home</a><li><a href=/b>Blog</a></ul></nav><main><h1>Thing</h1>"
        f"<p>{prose}</p><pre>def f():\n    return 1</pre>"
        "<ul><li>one thing that it does well<li>two things that it does not</ul>"
        "<table><tr><td>left</td><td>right</td></tr></table></main><footer>Imprint</footer></body></html>"
    )
    extracted = html(page)
    assert extracted.title == "The thing"
    assert "def f():\n    return 1" in extracted.text
    assert all(word in extracted.text for word in ("one thing", "two things", "left", "right", prose.strip()))
    assert not any(word in extracted.text for word in ("Home", "var x", "Imprint", "p {}"))


@pytest.mark.parametrize(
    "formula, tex",
    [
        (
            "<math><semantics><mi>y</mi>"
            '<annotation encoding="application/x-tex">y=\\alpha</annotation></semantics></math>',
            "$y=\\alpha$",
        ),
        ('<script type="math/tex; mode=display">a^2</script>', "$$a^2$$"),
        ('<span class="katex"><span><math alttext="x_1"><mi>x</mi></math></span><span>x1</span></span>', "$x_1$"),
    ],
)
def test_formulas_become_tex_once(formula, tex):
    text = html(f"<title>t</title><main><p>Where {formula} holds for all of them, as is easily seen.</p></main>").text
    assert text == f"Where {tex} holds for all of them, as is easily seen."


@pytest.mark.parametrize(
    "body, charset, expected",
    [
        ("grün".encode("latin-1"), "iso-8859-1", "grün"),
        ('<meta charset="windows-1251">привет, мир'.encode("windows-1251"), None, "привет, мир"),
        ("\ufeffgrün".encode(), "iso-8859-1", "grün"),
        ("\ufeffgrün".encode("utf-16-le"), None, "grün"),
        ("grün".encode(), "no-such-charset", "grün"),
    ],
)
def test_charset(body, charset, expected):
    assert decode(Page("http://a/", "text/html", body, charset)).endswith(expected)


def test_plain_text_and_code_are_verbatim_but_for_line_ends_and_controls():
    body = b"def f():\r\n\treturn '\x00a\xcc\x88'  \r\n"
    assert extract(Page("file:///a.py", "text/x-python", body)).text == "def f():\n\treturn 'ä'"
    assert extract(Page("file:///a.png", "image/png", body)).text == ""


@given(
    st.binary(max_size=300), st.sampled_from(["text/html", "text/plain"]), st.sampled_from([None, "utf-8", "x", "\x00"])
)
def test_any_bytes_give_clean_text(body, content_type, charset):
    for document in (body, b"<title>Pydoc: x</title><table class=section><dl><dd>" + body):
        text = extract(Page("http://a/", content_type, document, charset)).text
        assert text == unicodedata.normalize("NFC", text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\r]|\n{4}", text)
        text.encode()


TAGS = ["<dl>", "<dd>", "</dd>", "</dl>", "<td>", "<pre>", "</pre>", "<br>", "x", "<table>", "<p>", "<math>"]


@given(st.lists(st.sampled_from(TAGS)))
def test_no_nesting_of_tags_loses_the_text_of_a_pydoc_page(tags):
    text = html("<title>Pydoc: x</title>" + "".join(tags)).text
    assert text.count("x") == tags.count("x")


def test_time_grows_with_the_size_of_a_page(growth, within_a_minute):
    member = (
        "<dl><dt><a name=f><strong>f</strong></a>(x)</dt><dd><span class=code>Does&nbsp;it.<br>\nWell.</span></dd></dl>"
    )
    page = "<title>Pydoc: module m</title><table class=section><tr><td class=singlecolumn>"
    assert growth(lambda members: html(page + member * members), 500) < 8
    html("<div>" * 2_000 + "text")


@pytest.mark.skipif(not DATA.exists(), reason=f"no real pages in {DATA}")
def test_word_f1_on_real_pages():
    scores = []
    with gzip.open(DATA / "pages-dev.gold.jsonl.gz", "rt", encoding="utf-8") as file:
        gold = {row["url"]: row["main_content"] for row in map(json.loads, file)}
    for page in list(read_pages(DATA / "pages-dev-00.warc.gz", Losses()))[:60]:
        ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (extract(page).text, gold[page.url]))
        scores.append(2 * (ours & theirs).total() / max(1, ours.total() + theirs.total()))
    assert sum(scores) / len(scores) > 0.75


@pytest.mark.parametrize(
    "empty", ["<title/>", '<script src="a.js" />', "<style type='text/css'/>", '<a id="page_3"/>', "<iframe/>"]
)
@pytest.mark.parametrize("kind", ["application/xhtml+xml", "text/html"])
def test_empty_elements_of_xhtml_hold_nothing(empty, kind):
    """As in books of EPUB: to a parser of HTML the whole page was the title, the script or a link."""
    words = "<p>Bees fly over the field and gather honey from the flowers, each day of the summer, for the hive.</p>" * 4
    declared = '<?xml version="1.0"?>\n' * (kind == "text/html")
    source = f'{declared}<html xmlns="http://www.w3.org/1999/xhtml"><head>{{}}</head><body>{{}}{words}<br/></body></html>'
    source = source.format("", empty) if empty.startswith("<a") else source.format(empty, "")
    found = extract(Page("http://a.org/", kind, source.encode(), "utf-8"))
    assert found.text.count("Bees fly") == 4 and found.title is None


def test_a_shadow_root_that_is_shown_is_content():
    words = "<p>Bees fly over the field and gather honey from the flowers, each day of the summer, for the hive.</p>" * 4
    assert html(f"<bee-page><template shadowrootmode='open'>{words}</template></bee-page>").text.count("Bees fly") == 4
    assert html(f"<bee-page><template>{words}</template></bee-page>{words}").text.count("Bees fly") == 4

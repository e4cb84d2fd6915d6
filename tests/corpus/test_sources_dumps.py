"""Dumps of wikis and of Stack Exchange sites: read as they stream, whatever is damaged counted, nothing expanded."""

import bz2
import gzip
import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive import xml_records
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.archive.xml_records import elements
from groundup.corpus.config import SourceConfig
from groundup.corpus.extract.wikitext import prose
from groundup.data.readers import Refused
from seeds import POSTS, wiki_dump

MARKUP = """{{Infobox|name=Bee|x={{nested}}}}'''Bees''' are [[insect|insects]].<ref name="a">{{cite|b}}</ref><ref name=b />
[[Datei:Bee.jpg|mini|A [[bee]].]]
== Habits ==
They ''fly'' <math>x^{{2}}</math> &amp; [http://a.org hum] [https://b.org].
* one
* two
{| class="wikitable"
| cell
|}
=== Nothing ===
<!-- no -->
<syntaxhighlight lang="r">a[[1]] = 2</syntaxhighlight>
== See also ==
[[Kategorie:Bees]] [[fr:Abeille]]"""


def gather(tmp_path, source, **more):
    counts = collect(SourceConfig(source=str(source), domain="d", **more), tmp_path / "pages", "s", 1000.0, "test")
    pages = list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))
    return counts, {page.url: page.body.decode() for page in pages}


def test_prose_of_markup():
    assert prose(MARKUP, frozenset({"datei", "kategorie"})) == (
        "Bees are insects.\n\nHabits\n\nThey fly $x^{{2}}$ & hum .\n- one\n- two\n\nNothing\n\na[[1]] = 2"
    )
    assert prose("a\n== References ==\n* {{cite}}\n* [[File:x]]") == "a"
    assert prose("a {{open [[b|c]] and ]] d}") == "a open c and  d}"


@given(st.lists(st.sampled_from(["{{", "}}", "[[", "]]", "{|", "|}", "\n", "[http://a ", "]", "<ref>", "</ref>", "<!--", "-->",
                                 "''", "= ", "==", "* ", "a|b", "<math>", "</math>", "\x7f0\x7f"]), max_size=60))  # fmt: skip
def test_any_markup_gives_some_prose(parts):
    assert isinstance(prose("".join(parts)), str)


@pytest.mark.parametrize("part", ["{{a|", "[[a|", "[[a|]]", "<ref>", "<!--", "[http://a ", "\n{|", "\n=a=", "<math>"])
def test_markup_costs_one_pass(part, growth):
    assert growth(lambda characters: prose(part * (characters // len(part))), 20_000) < 8


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda dump: b"".join(map(bz2.compress, (dump[:500], dump[500:])))])
def test_a_wiki_dump(tmp_path, pack):
    ending = {"bytes": "", "compress": ".gz"}.get(pack.__name__, ".bz2")
    path = tmp_path / f"dewiki-latest-pages-articles.xml{ending}"
    path.write_bytes(pack(wiki_dump({"Biene": MARKUP, "Grüne Wespe?": "'''Wespen'''.", "Leer": "{{x}}"}).encode()))
    counts, pages = gather(tmp_path, path)
    assert list(pages) == ["https://de.wikipedia.org/wiki/Biene", "https://de.wikipedia.org/wiki/Gr%C3%BCne_Wespe%3F"]
    assert pages["https://de.wikipedia.org/wiki/Biene"].startswith("Biene\n\nBees are insects.\n\nHabits")
    assert counts["refused"] == {"no text": 1, "not an article": 1, "redirect": 1}


def test_questions_with_their_answers(tmp_path):
    path = tmp_path / "bees.stackexchange.com" / "Posts.xml"
    path.parent.mkdir()
    path.write_text(POSTS)
    counts, pages = gather(tmp_path, path)
    assert list(pages) == [f"https://bees.stackexchange.com/questions/{number}" for number in (1, 2)]
    first = pages["https://bees.stackexchange.com/questions/1"]
    words = ["Why do bees hum?", "They do.", "Muscles.", "Wings.", "x = 1", "Both."]
    assert [first.index(word) for word in words] == sorted(first.index(word) for word in words)
    assert counts["refused"] == {"answer without question": 1, "neither question nor answer": 1}
    (tmp_path / "dump").mkdir()
    path.rename(tmp_path / "dump" / "p.xml")
    assert list(gather(tmp_path, tmp_path / "dump")[1])[0] == "file:///dump/p.xml/1"


def test_other_xml_is_refused_and_in_a_folder_named(tmp_path):
    path = tmp_path / "all" / "a.xml"
    path.parent.mkdir()
    path.write_text("<rss><item/></rss>")
    with pytest.raises(UserError, match="no dump of MediaWiki or Stack Exchange"):
        gather(tmp_path, path)
    (tmp_path / "all" / "b.txt").write_text("words")
    assert gather(tmp_path, path.parent)[0]["refused"] == {"refused files": 1}


def test_nothing_expands_and_nothing_is_fetched(tmp_path):
    (tmp_path / "secret").write_text("secret")
    dump = wiki_dump({"A": "a &b; c", "B": "b"}).replace("&amp;b;", "&b;")
    for what in ('<!ENTITY b "bb">', f'<!ENTITY b SYSTEM "file://{tmp_path}/secret">', '<!ENTITY % b "bb"> %b;'):
        path = tmp_path / "a.xml"
        path.write_text(f"<!DOCTYPE mediawiki [{what}]>{dump}")
        with pytest.raises(UserError, match=r"gave no page.*entities: 1"):
            gather(tmp_path, path)
    path.write_text(dump)  # an entity that is nowhere defined breaks one article
    counts, pages = gather(tmp_path, path)
    assert list(pages) == ["https://de.wikipedia.org/wiki/B"] and counts["refused"]["damaged"] == 1


def test_damage_costs_the_article_that_it_is_in(tmp_path):
    dump = wiki_dump({f"T{number}": f"text {number}" for number in range(9)}).encode()
    for harm, gone in [
        (lambda: dump.replace(b"text 4", b"text \xff4"), {4}),
        (lambda: dump.replace(b"text 4</text>", b"text 4"), {4}),
        (lambda: dump.replace(b"text 4</text></revision></page>", b"text 4"), {4}),
        (lambda: dump[: dump.index(b"text 7")], {7, 8}),
        (lambda: dump.replace(b"<title>T2<", b"<title <<<>>T2<").replace(b"text 5", b"&"), {2, 5}),
    ]:
        path = tmp_path / "a.xml"
        path.write_bytes(harm())
        counts, pages = gather(tmp_path, path)
        assert [body.split()[0] for body in pages.values()] == [f"T{number}" for number in range(9) if number not in gone]
        assert counts["refused"]["damaged"] >= 1


def read(content, names=("page",), **more):
    refused = Refused()
    return list(elements(io.BytesIO(content), names, "x", refused, **more)), dict(refused)


def test_bounds_of_elements(monkeypatch):
    small = b"<page><t>x</t></page>"
    found, refused = read(b"<m><page><t>" + b"x" * 99_999 + b"</t></page>" + small + b"</m>", max_bytes=50_000)
    assert [element.text("t") for element in found] == ["x"] and refused == {"size": 1}
    found, refused = read(b'<?xml version="1.0" encoding="utf-9"?><m>' + small + small + b"</m>")  # nobody knows it
    assert len(found) == 2 and refused == {"damaged": 1}
    found, refused = read(b"<m><page>" + b"<a/>" * 99_999 + b"</page>" + small + b"</m>", max_bytes=50_000)
    assert len(found) == 1 and refused == {"size": 1}
    assert read(b"<m>" + b"<a>" * 1000 + small)[1] == {"damaged": 1}
    monkeypatch.setattr(xml_records, "MAX_TOKEN", 100_000)
    found, refused = read(b'<m><page a="' + b"x" * 400_000 + b'"/>' + small + b"</m>")
    assert len(found) == 1 and refused == {"damaged": 1}
    monkeypatch.setattr(xml_records, "MAX_BREAKS", 10)
    assert read(b"<m>" + b"<page><" * 100)[1] == {"damaged": 11}


@given(st.integers(1, 300))
def test_chunks_do_not_matter(chunk):
    content = wiki_dump({f"T{number}": "text" for number in range(3)}).encode()

    class Dripping(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, chunk))

    refused = Refused()
    assert list(elements(Dripping(content), ("page",), "x", refused)) == read(content)[0] and not refused


@given(st.integers(0, 700), st.sampled_from([b"<", b"\xff", b"</page>", b"<page>", b"&x;", b"\x00", b"]]>"]))
def test_one_wrong_place_costs_at_most_two_articles(at, harm):
    content = wiki_dump({f"T{number}": "text" for number in range(9)}, base="").encode()
    start = content.index(b"<page>")
    found, refused = read(content[: start + at] + harm + content[start + at :])
    assert len(found) >= 11 - 2 - (harm == b"<page>") and sum(refused.values()) <= 2

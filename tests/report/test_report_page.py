"""The report as a page: its form, what may run in it, how it is laid out."""

import base64
import hashlib
import re
import sys
from pathlib import Path

from groundup.report import report
from groundup.report.sections.corpus import SHOWN_TEXT

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path

from made_report import HOSTILE, RESULTS, Elements, change, page


def test_same_inputs_same_bytes(run):
    assert page(run) == page(run)


def test_stands_alone(text):
    elements = Elements(text)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert "svg" in tags
    assert not tags & {"link", "img", "iframe", "object", "embed", "form", "base"}
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    for _, attributes in elements.found:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or (target[1:] in ids if target.startswith("#") else re.fullmatch(r"[\w/.%-]+", target))
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text.encode()) < 1_500_000


def test_ids_are_unique(text):
    ids = [attributes["id"] for _, attributes in Elements(text).found if "id" in attributes]
    assert len(ids) == len(set(ids))


def scripts(text: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", text, re.S)


def test_only_our_own_script_may_run(text):
    [script] = scripts(text)
    [policy] = re.findall(r'"Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http" not in script and "innerHTML" not in script


def test_foreign_text_is_shown_as_text(text):
    assert text.count("<script") == 1 and "<script" not in text[: text.index("<main>")]
    assert text.count("&lt;script&gt;") >= 10  # titles, addresses, questions, answers, tokens
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\x00\\u202eevil" in text
    assert "trial &lt;b&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_dropped_documents_are_cut_redacted_and_name_what_they_repeat(text):
    assert "jane.doe" not in text
    assert "x" * SHOWN_TEXT not in text
    assert "of file:///a" in text


def test_every_figure_is_explained_in_two_sentences(text):
    captions = re.findall(
        r"<figcaption><strong>(.*?)</strong> <span>(.*?)</span> <span>(.*?)</span></figcaption>", text, re.S
    )
    assert len(captions) == text.count("<figure") > 20
    for title, *sentences in captions:
        for sentence in sentences:
            assert len(re.findall(r"[.?!](?=\s|$)", sentence.strip())) == 1 and sentence.strip().endswith("."), title


def test_drawings_have_words_and_tables_have_headers(text):
    found = Elements(text).found
    drawings = [attributes for _, attributes in found if attributes.get("role") == "img"]
    assert drawings and all(attributes["aria-label"].strip() for attributes in drawings)
    assert all("scope" in attributes for tag, attributes in found if tag == "th")


def test_pages_of_examples_are_folded(text):
    outside = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    assert "samples stacked" in text and "samples stacked" not in outside
    assert 'class="dropped"' in text and 'class="dropped"' not in outside and "<details open" not in text


def test_the_style_lets_nothing_out_of_its_box():
    """Tables scroll inside their box or are stacked on a phone; long words break; nothing is placed outside."""
    style = (report.HERE / "report.css").read_text()
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style) and "overflow-wrap: anywhere" in style
    assert not re.search(r"(?:left|right|margin[a-z-]*): -", style) and "http" not in style
    templates = "".join(path.read_text() for path in report.HERE.rglob("*.jinja"))
    for table in re.findall(r"(.*)<table([^>]*)>", templates):
        assert 'class="scroll"' in table[0] or "stacked" in table[1] or "hidden" in table[1], table


def check_layout(found: dict) -> None:
    """`found` is what `laid_out` gives: of windows of 390 and 1280 px, with scripts on and off."""
    assert found.keys() == {"390 on", "390 off", "1280 on", "1280 off"}
    for name, one in found.items():
        assert one["viewport"] == int(name.split()[0]) and one["sections"] >= 3, name
        assert one["width"] <= one["viewport"] and one["outside"] == [] and one["uncut"], (name, one)
        if one["tables"]:
            assert one["before"] == one["tables"] - 1, "of each text what comes after its last token"
            assert one["after"] == (0 if name.endswith("on") else one["before"]), name
            assert one["disabled"] is not name.endswith("on")


def test_hostile_text_and_long_words_stay_in_the_window(run, laid_out):
    texts = [HOSTILE, "x" * 500]
    change(run, "tokenizer", longest_tokens=texts, bytes_per_token=dict.fromkeys(texts, 1.0))
    change(run, "pages", **{"00-docs": RESULTS["pages"]["00-docs"] | {"source": texts[1], "domain": HOSTILE}})
    page(run)
    check_layout(laid_out(run["corpus"].parent / "report.html"))


def test_the_page_of_a_run_stays_in_the_window(tiny_run, laid_out):
    found = laid_out(tiny_run.folder / "report" / "report.html")
    check_layout(found)
    assert all(one["tables"] for one in found.values())


def test_a_half_run_stays_in_the_window(run, laid_out):
    page({name: run[name] for name in ("pages", "annotations", "corpus", "tokenizer")})
    check_layout(laid_out(run["corpus"].parent / "report.html"))

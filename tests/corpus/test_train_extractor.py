"""What the extractor is trained on: gold text of any kind of page, news articles, and snippets."""

import gzip
import json

import numpy as np
import pytest

from groundup.core.errors import UserError
from groundup.corpus.archive.warc import WarcWriter
from groundup.corpus.extract.train_extractor import KIND_WEIGHTS, SNIPPET, LabelledPage, read_examples, site_of

PROSE = "Of bees much is known, as they live near us and were kept for their honey; of wasps, which sting, far less is known. "
PAGE = f"<title>Bees</title><article><h1>Bees</h1><p>{PROSE * 2}</p><p>{PROSE * 3}</p></article><p>Read more about bees</p>"
GOLD = [
    {"url": "http://a.org/1", "page_type": "forum", "main_content": f"{PROSE * 2}\n{PROSE * 3}"},
    {"url": "http://b.example/2", "page": "http://www.b.co.uk/x", "article": PROSE * 2},
    {"url": "hard::c.org-page.html", "with": [PROSE[:40]], "without": ["Read more"]},
]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> dict[str, LabelledPage]:
    pytest.importorskip("trafilatura", reason="trafilatura is in the bench extra")
    data = tmp_path_factory.mktemp("data")
    with WarcWriter(data / "pages.warc.gz") as warc:
        for row in GOLD:
            warc.response(row["url"], 200, [("Content-Type", "text/html; charset=UTF-8")], PAGE.encode())
    for number, row in enumerate(GOLD):  # sets of several kinds in one folder
        with gzip.open(data / f"{number}.gold.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return {example.kind: example for example in read_examples(data)}


def test_sets_of_three_kinds_are_read(examples):
    assert {kind: example.site for kind, example in examples.items()} == {
        "forum": "a.org", "news": "b.co.uk", "snippets": "c.org",
    }  # fmt: skip
    assert examples["forum"].label.tolist() == [0, 1, 1, 0]
    assert examples["news"].label.tolist() == [0, 1, 0, 0] or examples["news"].label.tolist()[2] > 0  # its words come twice
    for kind, example in examples.items():
        assert np.isclose(example.weight.sum(), KIND_WEIGHTS.get(kind, 1.0))


def test_a_snippet_says_of_its_block_alone(examples):
    of = examples["snippets"]
    assert of.label.tolist()[1:] == [1, 1, 0]
    size = np.sqrt([len(words) for words in of.words])
    share = of.weight / size
    assert np.isclose(share[3], share[1]) and share[0] in (0, pytest.approx(share[1] / SNIPPET / 2))


def test_no_labelled_page_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no labelled pages"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    "url, site",
    [("https://blog.a.co.uk/x", "a.co.uk"), ("hard::blog.a.org.html", "a.org"), ("hard::a.com-b-c.html", "a.com"), ("", "")],
)
def test_the_site_of_a_page_or_a_file(url, site):
    assert site_of(url) == site

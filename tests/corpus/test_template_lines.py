import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.dedup.boilerplate_lines import line_hashes, remove, template_lines

# pytest imports each test file by itself, so what is beside it is not on its path.
spec = importlib.util.spec_from_file_location("forum", Path(__file__).with_name("forum.py"))
forum = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forum)


def judge(pages, share=0.3, counted=None):
    hashes = [line_hashes(page) for page in pages]
    sizes = np.array([len(lines) for lines in hashes], dtype=np.int64)
    judged = np.array(counted or [True] * len(pages), dtype=bool)
    owners, places = template_lines(np.concatenate([np.zeros(0, np.uint64), *hashes]), sizes, judged, share)
    return [places[owners == page].tolist() for page in range(len(pages))]


def body(number):
    return [f"paragraph {'abcdefghijklmnopqrstuvwxyz'[number]} {'xyz'[part % 3]}{'q' * part}" for part in range(30)]


def test_header_and_footer_go_and_a_recurring_heading_stays():
    pages = []
    for number in range(8):
        middle = body(number)
        middle[12:12] = ["Methods inherited from builtins.object:"]
        pages.append("\n".join([f"Page {number} of 8", "", "Home | Help", *middle, f"© 20{number:02d} the authors"]))
    last = len(pages[0].split("\n")) - 1
    # The recurring heading stands once on every page, so only its share below nine tenths keeps it.
    pages.append("\n".join(["Page 9 of 8", "", "Home | Help", *body(9), "© 2009 the authors"]))
    assert judge(pages)[0] == [0, 2, last]


def test_a_line_once_on_every_page_is_template_anywhere_but_a_frequent_one_is_not():
    pages = []
    for number in range(6):
        middle = body(number)
        middle[10:10] = ["Share this page"]
        middle[12:12] = ["Returns:", "x"] * 3
        pages.append("\n".join(middle))
    assert judge(pages)[0] == [10]


def test_too_few_pages_say_nothing():
    assert judge(["same\nline"] * 4) == [[]] * 4


def test_copies_are_no_evidence_but_are_cleaned():
    pages = ["Menu\n" + "\n".join(body(number)) for number in range(5)]
    copies = [pages[0]] * 20
    judged = judge(pages + copies, counted=[True] * 5 + [False] * 20)
    assert judged == [[0]] * 25
    assert judge(copies, counted=[True] + [False] * 19) == [[]] * 20


def test_hashes_ignore_digits_case_and_indent():
    first, second, blank = line_hashes("  Page 12 of 300\npage 1 of 2\n  ")
    assert first == second != blank == 0


@given(st.lists(st.text(alphabet="ab1 \n", max_size=30), max_size=12), st.floats(0, 1))
def test_indices_are_lines_of_their_page(pages, share):
    for page, found in zip(pages, judge(pages, share), strict=True):
        lines = page.split("\n")
        assert all(lines[place].strip() for place in found)
        kept = remove(page, found).split("\n")
        assert [line for line in kept if line.strip()] == [
            line for place, line in enumerate(lines) if place not in found and line.strip()
        ]


def test_nothing_to_remove_leaves_the_text_alone():
    assert remove("\n a \n", []) == "\n a \n"
    assert remove("menu\n\na\n", list(np.array([0]))) == "a"


def test_forum_header_menu_footer_and_signatures_go_and_posts_that_repeat_stay():
    pages = forum.pages()
    judged = judge(["\n".join(line for line, _ in page) for page in pages])
    gone = [[place in found for place in range(len(page))] for page, found in zip(pages, map(set, judged), strict=True)]
    outcomes = Counter(
        (template, dropped)
        for page, places in zip(pages, gone, strict=True)
        for (_, template), dropped in zip(page, places, strict=True)
    )
    precision = outcomes[True, True] / (outcomes[True, True] + outcomes[False, True])
    recall = outcomes[True, True] / (outcomes[True, True] + outcomes[True, False])
    assert precision >= 0.99 and recall >= 0.99
    kept = Counter(
        line
        for page, places in zip(pages, gone, strict=True)
        for (line, _), no in zip(page, places, strict=True)
        if not no
    )
    assert all(kept[line] > 50 for post in forum.REPEATED_POSTS for line in post)


def test_headings_of_a_reference_are_no_signatures():
    """As a name and a signature, one opens and the other closes what is different each time; but more follows."""
    generator = np.random.default_rng(0)
    pages = []
    for number in range(40):
        lines = [f"def function{'abcdefghij'[number % 10]}{'x' * number}"]
        for _ in range(20):
            lines += ["Parameters:", forum.sentence(generator), "Returns:", forum.sentence(generator)]
        pages.append("\n".join(lines))
    assert judge(pages) == [[]] * 40

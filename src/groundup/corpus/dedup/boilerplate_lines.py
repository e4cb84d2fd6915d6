"""Template lines: the header, menu and footer that one host repeats on its pages, and the signatures of its authors.

Counted per host, never over the whole corpus: FineWeb (Penedo et al. 2024, appendix E.3) found that deleting every line
seen elsewhere makes training worse. And by position: "Methods inherited from object" stands on most pages of a
reference, but in their middle, and teaches something. A signature is in the middle too; what tells it from a post that
many people write, as "Thanks, that worked!", is that it closes what the name of its author opens, with other words
between each time, and that nothing of its own follows.
"""

import re
from collections import Counter
from hashlib import blake2b

import numpy as np

LEAST_PAGES = 5
EDGE_LINES = 5  # the first and last lines of a page ...
EDGE_SHARE = 0.1  # ... or of a long page, its first and last tenth
AT_EDGE = 0.8  # of a line's places: there it is header or footer
NEARLY_ALL = 0.9  # of the pages: template wherever it stands, if it stands there once or twice
OPENED = 0.9  # of a signature's places: its author's name stands before them ...
NAME_OCCURRENCES = 2.0  # ... and on the whole at most this many times as often: some forums sign once a page
WORDS_BETWEEN = 0.25  # of its places: between the two stands a line that is not frequent
CLOSED = 0.8  # of its places: a frequent line follows, as the next author's, or the end of the page
POST_LINES = 100  # as far before a signature as a name is looked for
BLANK = np.uint64(0)
DIGITS = re.compile(r"\d+")


def line_hashes(text: str) -> np.ndarray:
    """uint64 [lines]: equal for lines that differ in digits, case and outer white space only; 0 for a blank line."""
    lines = [line.strip() for line in DIGITS.sub("0", text.lower()).split("\n")]
    hashed = {line: int.from_bytes(blake2b(line.encode(), digest_size=8).digest(), "little") for line in set(lines)}
    hashed[""] = int(BLANK)
    return np.array([hashed[line] for line in lines], dtype=np.uint64)


def template_lines(pages: list[np.ndarray], counted: list[bool], share: float) -> list[np.ndarray]:
    """For each page of one host (its line hashes), the indices of its template lines, int32, in order.

    A line is template if it stands on more than `share` of the pages and on at least five, and is at the top or bottom
    in most of its places; or if it stands once or twice on nearly every page; or if it is an author's signature. Pages
    not `counted` (copies of another page, which would make their whole text look repeated) have their lines judged but
    are no evidence.
    """
    on_pages: Counter[int] = Counter()
    at_edge: Counter[int] = Counter()
    occurrences: Counter[int] = Counter()
    for lines, counts in zip(pages, counted, strict=True):
        if counts:
            occurrences.update(lines.tolist())
            on_pages.update(np.unique(lines).tolist())
            at_edge.update(lines[_edges(lines)].tolist())
    enough = max(share * sum(counted), LEAST_PAGES - 1)
    frequent = {line: count for line, count in on_pages.items() if count > enough and line != BLANK}
    edge_lines = [line for line, count in frequent.items() if at_edge[line] >= AT_EDGE * occurrences[line]]
    everywhere = [
        line
        for line, count in frequent.items()
        if count >= NEARLY_ALL * sum(counted) and occurrences[line] <= 2 * count
    ]
    everywhere += _signatures(pages, counted, {*edge_lines, *everywhere})
    at_edges, anywhere = (np.array(sorted(found), dtype=np.uint64) for found in (edge_lines, everywhere))
    return [
        np.flatnonzero(np.isin(lines, anywhere) | (np.isin(lines, at_edges) & _edges(lines))).astype(np.int32)
        for lines in pages
    ]


def _signatures(pages: list[np.ndarray], counted: list[bool], known: set[int]) -> list[int]:
    evidence = [lines[lines != BLANK] for lines, counts in zip(pages, counted, strict=True) if counts]
    if len(evidence) < LEAST_PAGES:
        return []
    lines, codes = np.unique(np.concatenate(evidence), return_inverse=True)
    page = np.repeat(np.arange(len(evidence)), [len(some) for some in evidence])
    on_pages = np.bincount(np.unique(page * len(lines) + codes) % max(1, len(lines)), minlength=len(lines))
    frequent = on_pages >= LEAST_PAGES
    name_like = frequent & ~np.isin(lines, np.array(sorted(known), dtype=np.uint64))
    closes = np.ones(len(codes), dtype=bool)
    closes[:-1] = frequent[codes[1:]] | (page[1:] != page[:-1])
    occurrences = np.bincount(codes, minlength=len(lines))
    closing = frequent & (np.bincount(codes, closes, minlength=len(lines)) >= CLOSED * occurrences)
    signs = np.zeros(len(lines), dtype=bool)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(lines) + 1))
    for code in np.flatnonzero(closing & name_like).tolist():
        if _signs(order[starts[code] : starts[code + 1]], codes, page, frequent, name_like, occurrences):
            signs[code] = True
    # What several members put before their signatures, as the customary "--".
    leads = np.zeros(len(codes), dtype=bool)
    leads[:-1] = signs[codes[1:]] & (page[1:] == page[:-1])
    signs |= name_like & (np.bincount(codes, leads, minlength=len(lines)) >= OPENED * occurrences)
    return lines[signs].tolist()


def _signs(
    places: np.ndarray,
    codes: np.ndarray,
    page: np.ndarray,
    frequent: np.ndarray,
    name_like: np.ndarray,
    occurrences: np.ndarray,
) -> bool:
    """Whether one other line, as an author's name would, opens what the line at `places` closes."""
    opened: Counter[int] = Counter()
    with_words: Counter[int] = Counter()
    before = -1
    for place in places.tolist():
        start = max(before + 1, place - POST_LINES, int(np.searchsorted(page, page[place])))
        window = codes[start:place][::-1]
        words_until = np.cumsum(~frequent[window])  # lines that are not frequent, from the signature back to each line
        names, nearest = np.unique(window, return_index=True)
        opening = name_like[names]
        opened.update(names[opening].tolist())
        with_words.update(names[opening & (words_until[nearest] > 0)].tolist())
        before = place
    return any(
        count >= OPENED * len(places)
        and with_words[name] >= WORDS_BETWEEN * len(places)
        and occurrences[name] <= NAME_OCCURRENCES * len(places)
        for name, count in opened.items()
    )


def _edges(lines: np.ndarray) -> np.ndarray:
    """bool [lines]: whether a line is among the first or last of its page; blank lines are not counted."""
    filled = lines != BLANK
    place = np.cumsum(filled) - 1
    total = int(filled.sum())
    reach = max(EDGE_LINES, int(total * EDGE_SHARE))
    return filled & ((place < reach) | (place >= total - reach))


def remove(text: str, indices: list[int]) -> str:
    """The text without the lines at `indices`, and without the blank lines that this leaves at its ends."""
    if not indices:
        return text
    gone = set(indices)
    return "\n".join(line for place, line in enumerate(text.split("\n")) if place not in gone).strip("\n")

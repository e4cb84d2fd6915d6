"""Template lines: the header, menu and footer that one host repeats on its pages.

Counted per host, never over the whole corpus: FineWeb (Penedo et al. 2024, appendix E.3) found that deleting every line
seen elsewhere makes training worse. And by position: "Methods inherited from object" stands on most pages of a
reference, but in their middle, and teaches something.
"""

import re
from collections import Counter
from hashlib import blake2b

import numpy as np

LEAST_PAGES = 5
EDGE_LINES = 5  # the first and last lines of a page ...
EDGE_SHARE = 0.1  # ... or of a long page, its first and last tenth
AT_EDGE = 0.8  # of a line's pages: there it is header or footer
NEARLY_ALL = 0.9  # of the pages: template wherever it stands, if it stands there once or twice
BLANK = np.uint64(0)
DIGITS = re.compile(r"\d+")


def line_hashes(text: str) -> np.ndarray:
    """uint64 [lines]: equal for lines that differ in digits, case and outer white space only; 0 for a blank line."""
    lines = [DIGITS.sub("0", line.strip().lower()) for line in text.split("\n")]
    hashed = {line: int.from_bytes(blake2b(line.encode(), digest_size=8).digest(), "little") for line in set(lines)}
    hashed[""] = int(BLANK)
    return np.array([hashed[line] for line in lines], dtype=np.uint64)


def template_lines(pages: list[np.ndarray], counted: list[bool], share: float) -> list[np.ndarray]:
    """For each page of one host (its line hashes), the indices of its template lines, int32, in order.

    A line is template if it stands on more than `share` of the pages and on at least five, and is at the top or bottom
    of most of those; or if it stands once or twice on nearly every page. Pages not `counted` (copies of another page,
    which would make their whole text look repeated) have their lines judged but are no evidence.
    """
    on_pages: Counter[int] = Counter()
    at_edge: Counter[int] = Counter()
    occurrences: Counter[int] = Counter()
    for lines, counts in zip(pages, counted, strict=True):
        if counts:
            occurrences.update(lines.tolist())
            on_pages.update(np.unique(lines).tolist())
            at_edge.update(np.unique(lines[_edges(lines)]).tolist())
    enough = max(share * sum(counted), LEAST_PAGES - 1)
    frequent = {line: count for line, count in on_pages.items() if count > enough and line != BLANK}
    edge_lines = [line for line, count in frequent.items() if at_edge[line] >= AT_EDGE * count]
    everywhere = [
        line
        for line, count in frequent.items()
        if count >= NEARLY_ALL * sum(counted) and occurrences[line] <= 2 * count
    ]
    at_edges, anywhere = (np.array(sorted(found), dtype=np.uint64) for found in (edge_lines, everywhere))
    return [
        np.flatnonzero(np.isin(lines, anywhere) | (np.isin(lines, at_edges) & _edges(lines))).astype(np.int32)
        for lines in pages
    ]


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

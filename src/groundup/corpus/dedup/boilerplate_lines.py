"""Template lines: the header, menu and footer that one host repeats on its pages, and the signatures of its authors.

Lines are counted per host, never over the whole corpus: FineWeb (Penedo et al. 2024, appendix E.3) found that deleting every
line seen elsewhere makes training worse. And by position: "Methods inherited from object" is on most pages of a reference,
but in their middle, and teaches something. A signature is in the middle too. It differs from a post that many people write,
as "Thanks, that worked!": it closes what the name of its author opens, with other words between each time, and nothing of
that post follows.
"""

import re
from collections import Counter
from hashlib import blake2b

import numpy as np

MIN_PAGES = 5
EDGE_LINES = 5  # the first and last lines of a page ...
EDGE_SHARE = 0.1  # ... or of a long page, its first and last tenth
AT_EDGE = 0.8  # of a line's occurrences: then it is header or footer
NEARLY_ALL = 0.9  # of the pages: then it is template anywhere, if it occurs once or twice per page
OPENED = 0.9  # of a signature's occurrences: its author's name comes before ...
NAME_OCCURRENCES = 2.0  # ... and occurs at most this many times as often in all: some forums sign once per page
WORDS_BETWEEN = 0.25  # of its occurrences: between the two is a line that is not frequent
CLOSED = 0.8  # of its occurrences: a frequent line follows, as the next author's name, or the end of the page
POST_LINES = 100  # before a signature that are searched for a name
BLANK = np.uint64(0)
DIGITS = re.compile(r"\d+")


def line_hashes(text: str) -> np.ndarray:
    """uint64 [lines]: equal for lines that differ only in digits, case and outer white space; 0 for a blank line."""
    lines = [line.strip() for line in DIGITS.sub("0", text.lower()).split("\n")]
    hashed = {line: int.from_bytes(blake2b(line.encode(), digest_size=8).digest(), "little") for line in set(lines)}
    hashed[""] = int(BLANK)
    return np.array([hashed[line] for line in lines], dtype=np.uint64)


def template_lines(
    values: np.ndarray, sizes: np.ndarray, counted: np.ndarray, min_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The template lines of one host: for each its page, int32, and its index in that page, int32, in order.

    `values` are the line hashes of all pages, one page after another, `sizes` the number of lines of each. A line is template
    if it is on more than `min_share` of the pages and on at least five, and most of its occurrences are at the top or bottom;
    or if it occurs once or twice on nearly every page; or if it is an author's signature. Pages that are not `counted`, bool
    [pages] (copies of another page, which would make their whole text look repeated), are no evidence; their template lines
    are returned too.
    """
    page = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    edges, evidence, total = _edges(values, page, sizes), counted[page], int(np.count_nonzero(counted))
    lines, codes = np.unique(values[evidence], return_inverse=True)
    occurrences = np.bincount(codes, minlength=len(lines))
    at_edge = np.bincount(codes[edges[evidence]], minlength=len(lines))
    on_pages = _on_pages(page[evidence], codes, len(lines))
    frequent = (on_pages > max(min_share * total, MIN_PAGES - 1)) & (lines != BLANK)
    at_edges = frequent & (at_edge >= AT_EDGE * occurrences)
    anywhere = frequent & (on_pages >= NEARLY_ALL * total) & (occurrences <= 2 * on_pages)
    at_edges, anywhere = lines[at_edges], lines[anywhere]
    del lines, codes, occurrences, at_edge, on_pages, frequent
    if total >= MIN_PAGES:
        evidence &= values != BLANK
        signatures = _signatures(values[evidence], page[evidence], np.union1d(at_edges, anywhere))
        anywhere = np.concatenate([anywhere, signatures])
    indices = np.flatnonzero(np.isin(values, anywhere) | (np.isin(values, at_edges) & edges))
    owners = page[indices]
    return owners, (indices - (np.cumsum(sizes) - sizes)[owners]).astype(np.int32)


def _on_pages(page: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """int64 [count]: on how many pages the line of each code is."""
    return np.bincount(np.unique(page * np.int64(count) + codes) % max(1, count), minlength=count)


def _signatures(values: np.ndarray, page: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Hashes of the lines that are signatures; `values` are the filled lines of the counted pages, `page` the page of each."""
    lines, codes = np.unique(values, return_inverse=True)
    frequent = _on_pages(page, codes, len(lines)) >= MIN_PAGES
    name_like = frequent & ~np.isin(lines, known)
    closes = np.ones(len(codes), dtype=bool)
    closes[:-1] = frequent[codes[1:]] | (page[1:] != page[:-1])
    occurrences = np.bincount(codes, minlength=len(lines))
    closing = frequent & (np.bincount(codes, closes, minlength=len(lines)) >= CLOSED * occurrences)
    is_signature = np.zeros(len(lines), dtype=bool)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(lines) + 1))
    for code in np.flatnonzero(closing & name_like).tolist():
        if _is_signature(order[starts[code] : starts[code + 1]], codes, page, frequent, name_like, occurrences):
            is_signature[code] = True
    # Lines that several members put before their signatures, as the customary "--".
    leads = np.zeros(len(codes), dtype=bool)
    leads[:-1] = is_signature[codes[1:]] & (page[1:] == page[:-1])
    is_signature |= name_like & (np.bincount(codes, leads, minlength=len(lines)) >= OPENED * occurrences)
    return lines[is_signature]


def _is_signature(
    positions: np.ndarray,
    codes: np.ndarray,
    page: np.ndarray,
    frequent: np.ndarray,
    name_like: np.ndarray,
    occurrences: np.ndarray,
) -> bool:
    """Whether another line, as an author's name would, opens what the line at `positions` closes."""
    opened: Counter[int] = Counter()
    with_words: Counter[int] = Counter()
    previous = -1
    for position in positions.tolist():
        start = max(previous + 1, position - POST_LINES, int(np.searchsorted(page, page[position])))
        window = codes[start:position][::-1]
        words_until = np.cumsum(~frequent[window])  # lines that are not frequent, from the signature back to each line
        names, nearest = np.unique(window, return_index=True)
        opening = name_like[names]
        opened.update(names[opening].tolist())
        with_words.update(names[opening & (words_until[nearest] > 0)].tolist())
        previous = position
    return any(
        count >= OPENED * len(positions)
        and with_words[name] >= WORDS_BETWEEN * len(positions)
        and occurrences[name] <= NAME_OCCURRENCES * len(positions)
        for name, count in opened.items()
    )


def _edges(values: np.ndarray, page: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """bool [lines]: whether a line is among the first or last of its page; blank lines do not count."""
    filled = values != BLANK
    filled_before = np.append(0, np.cumsum(filled))
    ends = np.cumsum(sizes)
    first, last = filled_before[ends - sizes], filled_before[ends]
    reach = np.maximum(EDGE_LINES, ((last - first) * EDGE_SHARE).astype(np.int64))
    ordinal = filled_before[:-1]
    return filled & ((ordinal < (first + reach)[page]) | (ordinal >= (last - reach)[page]))


def remove(text: str, indices: list[int]) -> str:
    """The text without the lines at `indices`, and without the blank lines that this leaves at its ends."""
    if not indices:
        return text
    removed = set(indices)
    return "\n".join(line for index, line in enumerate(text.split("\n")) if index not in removed).strip("\n")

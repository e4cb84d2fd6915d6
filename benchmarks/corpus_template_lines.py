"""Template lines of a forum of 300 made pages: header, menu, footer and signatures go, posts that repeat stay.

Beside it, what deleting every line seen before does, as line deduplication over a whole corpus would. Five forums of
different seeds; a line counts once for each page that it is on.
"""

import statistics
import sys
from collections.abc import Callable

import numpy as np

from common import ROOT, arguments, conclude
from groundup.corpus.dedup.boilerplate_lines import line_hashes, template_lines

sys.path.insert(0, str(ROOT / "tests" / "corpus"))
import forum

BAR, SEEDS, SHARE = 0.99, range(5), 0.3
Page = list[tuple[str, bool]]


def ours(pages: list[Page]) -> list[set[int]]:
    hashes = [line_hashes("\n".join(line for line, _ in page)) for page in pages]
    sizes = np.array([len(lines) for lines in hashes])
    owners, line_numbers = template_lines(np.concatenate(hashes), sizes, np.ones(len(pages), dtype=bool), SHARE)
    return [set(line_numbers[owners == page].tolist()) for page in range(len(pages))]


def seen_before(pages: list[Page]) -> list[set[int]]:
    seen: set[str] = set()
    repeated = []
    for page in pages:
        repeated.append({number for number, (line, _) in enumerate(page) if line in seen})
        seen.update(line for line, _ in page)
    return repeated


def precision_and_recall(judge: Callable[[list[Page]], list[set[int]]], pages: list[Page]) -> tuple[float, float]:
    judged = judge(pages)
    right = sum(page[number][1] for page, numbers in zip(pages, judged, strict=True) for number in numbers)
    return right / sum(map(len, judged)), right / sum(template for page in pages for _, template in page)


def main() -> None:
    arguments(__doc__)
    rows: dict[str, list[tuple[float, float]]] = {"groundup": [], "every line seen before": []}
    for seed in SEEDS:
        pages = forum.pages(300, seed)
        for name, judge in (("groundup", ours), ("every line seen before", seen_before)):
            rows[name].append(precision_and_recall(judge, pages))
            print(f"seed {seed}  {name:<24} precision {rows[name][-1][0]:.4f}  recall {rows[name][-1][1]:.4f}")
    lowest = {name: min(min(pair) for pair in pairs) for name, pairs in rows.items()}
    print(
        "medians:",
        {name: [statistics.median(side) for side in zip(*pairs, strict=True)] for name, pairs in rows.items()},
    )
    conclude(
        "template lines of a forum, the least of precision and recall over five seeds",
        lowest["groundup"], "", BAR, lowest["groundup"] >= BAR,
        peer="every line seen before", peer_figure=lowest["every line seen before"],
    )  # fmt: skip


if __name__ == "__main__":
    main()

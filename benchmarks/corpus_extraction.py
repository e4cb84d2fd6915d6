"""Main content of real pages: word F1 by cross-validation grouped by site, and pages per second, beside trafilatura.

Word F1 is of bags of lower-cased \\w+ per page, averaged over pages; where nothing is content, only no text is right (1, else
0). Seconds are of one thread's processor time, in turn for each file of 200 pages, from HTML (ours as UTF-8, trafilatura's as
text) to text.
"""

import time
from collections import defaultdict
from importlib import metadata

from common import arguments, conclude, machine
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.extract.content import WEIGHTS
from groundup.corpus.extract.page_text import decode, text_of, utf8
from groundup.corpus.extract.train_extractor import WORD, Example, cross_validated, read_examples, word_f1

CLAIM = "main content: word F1 by page, cross-validated by site; also 5 times the pages a second"
BAR_F1, GOAL_F1, BAR_SPEED, GOAL_SPEED, BAR_BYTES = 0.865, 0.88, 5.0, 10.0, 500_000


def main() -> None:
    data = arguments(__doc__).data / "web"
    if not data.exists():
        return conclude(CLAIM, None, "F1", BAR_F1, None, reason=f"no pages in {data}")
    examples = read_examples(data)
    by_url = {example.url: example for example in examples}
    models = {}
    for pages, model in zip(*cross_validated(examples), strict=True):
        models |= {examples[at].url: model for at in pages}
    print(f"{machine()}\n{len(examples)} pages of {len({example.site for example in examples})} sites", flush=True)
    try:
        import trafilatura
    except ImportError:
        trafilatura = None

    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)
    for path in sorted(data.glob("*.warc.gz")):
        pages = [page for page in read_pages(path, Losses()) if page.url in models]
        for page in pages:
            source = utf8(page)
            start = time.process_time()
            ours = text_of(source, models[page.url]).text
            seconds["groundup"] += time.process_time() - start
            _record(scores["groundup"], by_url[page.url], ours)
        for page in pages if trafilatura else []:
            source = decode(page)
            start = time.process_time()
            theirs = trafilatura.extract(source, include_comments=True, include_tables=True) or ""
            seconds["trafilatura"] += time.process_time() - start
            _record(scores["trafilatura"], by_url[page.url], theirs)

    kinds = sorted({example.kind for example in examples})
    print(f"{'':14}{'pages/s':>9}{'all':>8}" + "".join(f"{kind:>15}" for kind in kinds))
    for name, by_kind in scores.items():
        print(
            f"{name:14}{len(examples) / seconds[name]:>9.1f}{_mean(by_kind['all']):>8.4f}"
            + "".join(f"{_mean(by_kind[kind]):>15.3f}" for kind in kinds)
        )
    size, f1 = WEIGHTS.stat().st_size, _mean(scores["groundup"]["all"])
    print(f"weights {size / 1000:.0f} kB (bar {BAR_BYTES / 1000:.0f}); F1 bar {BAR_F1}, goal {GOAL_F1}")
    if not trafilatura:
        return conclude(CLAIM, f1, "F1", BAR_F1, None, reason="trafilatura is not installed, so no pages/s beside it")
    faster = seconds["trafilatura"] / seconds["groundup"]
    print(
        f"{faster:.1f} times the pages/s of trafilatura {metadata.version('trafilatura')} (bar {BAR_SPEED}, goal {GOAL_SPEED})"
    )
    holds = f1 >= BAR_F1 and faster >= BAR_SPEED and size <= BAR_BYTES
    conclude(
        CLAIM,
        f1,
        "F1",
        BAR_F1,
        holds,
        peer="trafilatura, with comments",
        peer_figure=_mean(scores["trafilatura"]["all"]),
    )
    return None


def _record(scores: dict[str, list[float]], example: Example, text: str) -> None:
    f1 = word_f1([WORD.findall(text.lower())], example.gold)
    scores["all"].append(f1)
    scores[example.kind].append(f1)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()

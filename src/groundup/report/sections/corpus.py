from pathlib import Path
from typing import Any

from groundup.core.files import read_json
from groundup.core.text import visible
from groundup.corpus.annotate import personal
from groundup.corpus.tables import read_table
from groundup.report import figures
from groundup.report.formats import number
from groundup.report.run_results import RunResults

TITLE = "From pages to a corpus"
STAGES = ("pages", "annotations", "corpus")
SHOWN_TEXT = 200  # characters of a dropped document
SHOWN_DROPPED = 3  # of each reason


def gather(run: RunResults) -> dict[str, Any]:
    results = run.results
    facts = [("pages collected", number(results["annotations"]["pages"]))] if "annotations" in results else []
    page = {"pages": results.get("pages", {}), "funnel": None}
    if "corpus" not in run.folders:
        return {**page, "facts": facts}
    steps = visible(read_json(run.folders["corpus"] / "funnel.json"))
    first = [("documents found", steps["steps"][0]["before"]["by_domain"])] if steps["steps"] else []
    after = [(step["step"], step["after"]["by_domain"]) for step in steps["steps"]]
    return {
        **page,
        "facts": [*facts, ("documents kept", number(steps["left"]["documents"]))],
        "funnel": steps,
        "funnel_figure": figures.funnel("funnel", [*first, *after]),
        "dropped": dropped(run.folders["corpus"]),
    }


def dropped(corpus: Path) -> dict[str, list[dict[str, str]]]:
    """A few dropped documents of each reason, in the order of the file, with personal data redacted."""
    rows = read_table(corpus / "dropped.parquet", ["id", "url", "text", "reason", "detail"]).to_pylist()
    kept = read_table(corpus / "documents.parquet", ["id", "url"]).to_pylist()
    urls = {row["id"]: row["url"] for row in [*kept, *rows]}
    by_reason: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        examples = by_reason.setdefault(visible(row["reason"]), [])
        if len(examples) < SHOWN_DROPPED:
            detail = row["detail"]
            if detail.startswith("of "):  # a duplicate names the document that it repeats by its id
                detail = f"of {urls.get(detail[3:], detail[3:])}"
            # Personal data is redacted only in documents that were kept. It is redacted before the cut, which could hide a part.
            text = personal.redact(row["text"], personal.find(row["text"]))[:SHOWN_TEXT]
            examples.append(visible({"url": row["url"], "detail": detail, "text": text}))
    return by_reason

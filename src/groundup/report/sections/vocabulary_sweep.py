from typing import Any

from groundup.report import figures
from groundup.report.run_results import RunResults
from groundup.report.words import number

TITLE = "Choosing the vocabulary"
STAGES = ("vocabulary_sweep",)


def gather(run: RunResults) -> dict[str, Any]:
    found = run.results["vocabulary_sweep"]
    facts = [("tokens in the best vocabulary", number(found["recommended"]))]
    return {"facts": facts, "found": found, "curve": figures.vocabulary(found)}

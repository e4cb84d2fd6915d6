from typing import Any

from groundup.report import figures
from groundup.report.formats import number
from groundup.report.run_results import RunResults

TITLE = "Choosing the vocabulary"
STAGES = ("vocabulary_sweep",)


def gather(run: RunResults) -> dict[str, Any]:
    sweep = run.results["vocabulary_sweep"]
    facts = [("tokens in the best vocabulary", number(sweep["recommended"]))]
    return {"facts": facts, "sweep": sweep, "curve": figures.vocabulary(sweep)}

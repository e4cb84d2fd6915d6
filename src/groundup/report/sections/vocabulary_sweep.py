from typing import Any

from groundup.report import figures
from groundup.report.made import Made
from groundup.report.words import number

TITLE = "Choosing the vocabulary"
STAGES = ("vocabulary_sweep",)


def gather(made: Made) -> dict[str, Any]:
    found = made.results["vocabulary_sweep"]
    facts = [("tokens in the best vocabulary", number(found["recommended"]))]
    return {"facts": facts, "found": found, "curve": figures.vocabulary(found)}

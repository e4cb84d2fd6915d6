"""The page of a ladder: the law, how far it can be trusted, then the plan, the mixture and the bill."""

from pathlib import Path
from typing import Any

from groundup.core.files import write_text
from groundup.core.text import visible
from groundup.report import figures
from groundup.report.tokenizer_page import render
from groundup.scaling import laws, mixture_laws, study, training_cost
from groundup.scaling.run_table import read


def write(
    out: Path,
    table: Path,
    mixtures: Path | None = None,
    flop: float | None = None,
    gpu: str = "h100",
    gpus: int = 8,
    draws: int = laws.DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the page of a table of runs, and of a table of mixtures and a planned training where they are given.

    Raises UserError as `run_table.read`, `laws.fit`, `mixture_laws.read` and `training_cost.bill`.
    """
    runs = read(table)
    fitted, page = laws.fit(runs, draws, seed), study.study(runs, draws, seed)
    drawn = study.figure_points(runs, fitted)
    page |= {
        "name": visible(table.name),
        "plan": study.predict(fitted, runs, None, None, flop) if flop else None,
        "bill": training_cost.bill(flop, gpu, gpus) if flop else None,
        "llama": training_cost.llama3(),
        "mixture": mixture_laws.propose(mixture_laws.read(mixtures), seed=seed) if mixtures else None,
        "figure": figures.law(
            "law", [(x, y) for x, y, _ in drawn["points"]], drawn["frontier"], "FLOP", "loss, nats per token"
        ),
        "residual_figure": figures.residuals(
            "residuals", [(x, 100 * residual) for x, _, residual in drawn["points"]], "FLOP", "measured over law, %"
        ),
        "interval_figure": figures.intervals("exponents", _exponent_rows(page), "the best size grows as FLOP^a", percent=False),
    }  # fmt: skip
    write_text(out, render("scaling.html.jinja", page))
    return {"page": str(out), "law": page["law"], "plan": page["plan"], "runs": len(runs), "diverged": runs.diverged}


def _exponent_rows(page: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """`a` with its interval by each approach and from each part of the runs."""
    rows = [("approach 3", page["law"]["a"])]
    rows += [(f"approach {n}", page[f"approach{n}"]["a"]) for n in (1, 2) if page[f"approach{n}"]["a"]]
    rows += [(row["runs_kept"], row["law"]["a"]) for row in page["sensitivity"][1:] if "law" in row]
    rows += [(f"counted: {row['counted']}", row["law"]["a"]) for row in page["conventions"][1:] if "law" in row]
    return [(visible(name), row["value"], row["low"], row["high"]) for name, row in rows]

"""The page of a ladder: figures of the law first, then how far it can be trusted, the plan, the mixture and the bill."""

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

    Raises UserError as `runs.read`, `laws.fit`, `mixture_laws.read` and `training_cost.bill`.
    """
    runs = read(table)
    fitted, found = laws.fit(runs, draws, seed), study.study(runs, draws, seed)
    shown = study.figure_points(runs, fitted)
    found |= {
        "name": visible(table.name),
        "plan": study.predict(fitted, runs, None, None, flop) if flop else None,
        "bill": training_cost.bill(flop, gpu, gpus) if flop else None,
        "llama": training_cost.llama3(),
        "mixture": mixture_laws.propose(mixture_laws.read(mixtures), seed=seed) if mixtures else None,
        "figure": figures.law(
            "law", [(x, y) for x, y, _ in shown["points"]], shown["frontier"], "FLOP", "loss, nats per token"
        ),
        "residual_figure": figures.residuals(
            "residuals", [(x, 100 * off) for x, _, off in shown["points"]], "FLOP", "measured over law, %"
        ),
        "interval_figure": figures.intervals("exponents", _rows(found), "the best size grows as FLOP^a", percent=False),
    }  # fmt: skip
    write_text(out, render("scaling.html.jinja", found))
    return {"page": str(out), "law": found["law"], "plan": found["plan"], "runs": len(runs), "diverged": runs.diverged}


def _rows(found: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """`a` with its interval by each approach and from each part of the runs."""
    rows = [("approach 3", found["law"]["a"])]
    rows += [(f"approach {n}", found[f"approach{n}"]["a"]) for n in (1, 2) if found[f"approach{n}"]["a"]]
    rows += [(one["runs_kept"], one["law"]["a"]) for one in found["sensitivity"][1:] if "law" in one]
    rows += [(f"counted: {one['counted']}", one["law"]["a"]) for one in found["conventions"][1:] if "law" in one]
    return [(visible(name), one["value"], one["low"], one["high"]) for name, one in rows]

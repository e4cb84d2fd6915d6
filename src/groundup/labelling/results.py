"""The judgements of a project, as preferences to train on and as figures."""

import math
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import write_jsonl
from groundup.core.outputs import require_made_with
from groundup.data.simulated_annotator import preferences
from groundup.labelling.agreement import summary
from groundup.labelling.assignment import progress
from groundup.labelling.store import Store


def log_of(store: Store) -> list[dict[str, Any]]:
    """The labelling log (`data/simulated_annotator.py`): the last judgement of each annotator on each pair.

    In the order of the pairs and of the annotators' names, so that it does not depend on who was faster.
    """
    with store.transaction() as connection:
        pairs, judgements = store.pairs(connection), store.judgements(connection)
    rows = []
    for event in judgements:
        pair = pairs[event["pair_id"]]
        alone = len(pair.prompt) == 1 and pair.prompt[0]["role"] == "user"
        row = {
            "pair_id": pair.pair_id, "prompt": pair.prompt[0]["content"] if alone else pair.prompt, "a": pair.a, "b": pair.b,
            **{name: event[name] for name in ("shown_left", "choice", "annotator", "strength", "seconds", "reason")},
            "at": datetime.fromtimestamp(event["at"], UTC).isoformat(timespec="seconds"),
            "model_a": pair.model_a, "model_b": pair.model_b, "gold": pair.gold,
        }  # fmt: skip
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows


def export(store: Store, out: Path) -> dict[str, Any]:
    """Write `preferences.jsonl`, TRL's rows with margins, and `preferences.judgements.jsonl`, the log, to a folder.

    Pairs whose answer was known are in the log alone. Raises UserError where nobody has judged anything.
    """
    require_made_with(out / "preferences.judgements.jsonl", out / "preferences.jsonl")
    log = log_of(store)
    if not log:
        raise UserError(f"{store.shown}: nobody has judged a pair; `groundup label serve` opens the page")
    rows = preferences([event for event in log if "gold" not in event])
    write_jsonl(out / "preferences.judgements.jsonl", log)
    write_jsonl(out / "preferences.jsonl", rows)
    judged = {event["pair_id"] for event in log if "gold" not in event and event["choice"] != "skip"}
    return {"out": str(out), "judgements": len(log), "preferences": len(rows), "without_winner": len(judged) - len(rows)}


def report(store: Store) -> dict[str, Any]:
    """Progress, seconds and cost, agreement and bias; a figure that is not defined is None."""
    log = log_of(store)
    with store.transaction() as connection:
        figures = progress(store, connection)
    del figures["yours"]
    seconds = [event["seconds"] for event in log if "seconds" in event]
    figures["median_seconds"] = statistics.median(seconds) if seconds else None
    return _nan_to_none({"judgements": len(log), **figures, **summary(log)})


def lines_of(figures: dict[str, Any]) -> list[str]:
    """A report for people."""
    def number(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    def interval(share: dict[str, Any]) -> str:
        return f"{number(share['share'])} ({number(share['low'])} to {number(share['high'])}, n {share['n']})"

    return [
        f"labels {figures['labels']:,} of {figures['wanted']:,}; {number(figures['seconds_per_label'], 1)} seconds and "
        f"{number(figures['cost_per_label'], 2)} of cost a label; {number(figures['cost'], 2)} in all",
        f"raw agreement {number(figures['raw_agreement'])}; Fleiss' kappa {number(figures['fleiss_kappa'])}; "
        f"Krippendorff's alpha {number(figures['krippendorff_alpha'])}",
        *(f"Cohen's kappa {names}: {number(kappa)}" for names, kappa in figures["cohen_kappa"].items()),
        *(
            f"{name}: {annotator['judgements']:,} judgements; right on known pairs {interval(annotator['gold'])}; "
            f"longer chosen {interval(annotator['longer_chosen'])}; left chosen {interval(annotator['left_chosen'])}"
            for name, annotator in {"all": {**figures}, **figures["annotators"]}.items()
        ),
    ]


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nan_to_none(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

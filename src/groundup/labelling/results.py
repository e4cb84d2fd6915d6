"""What people said, as preferences to train on and as figures."""

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
    """The labelling log (`data/simulated_annotator.py`): the last word of each annotator on each pair.

    In the order of the pairs and of the annotators' names, so that it does not depend on who was faster.
    """
    with store.transaction() as connection:
        pairs, told = store.pairs(connection), store.judgements(connection)
    rows = []
    for event in told:
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
        done = progress(store, connection)
    del done["yours"]
    seconds = [event["seconds"] for event in log if "seconds" in event]
    done["median_seconds"] = statistics.median(seconds) if seconds else None
    return _defined({"judgements": len(log), **done, **summary(log)})


def lines_of(found: dict[str, Any]) -> list[str]:
    """A report for people."""
    def number(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    def interval(of: dict[str, Any]) -> str:
        return f"{number(of['share'])} ({number(of['low'])} to {number(of['high'])}, n {of['n']})"

    return [
        f"labels {found['labels']:,} of {found['wanted']:,}; {number(found['seconds_per_label'], 1)} seconds and "
        f"{number(found['cost_per_label'], 2)} of cost a label; {number(found['cost'], 2)} in all",
        f"raw agreement {number(found['raw_agreement'])}; Fleiss' kappa {number(found['fleiss_kappa'])}; "
        f"Krippendorff's alpha {number(found['krippendorff_alpha'])}",
        *(f"Cohen's kappa {names}: {number(kappa)}" for names, kappa in found["cohen_kappa"].items()),
        *(
            f"{name}: {of['judgements']:,} judgements; right on known pairs {interval(of['gold'])}; "
            f"longer chosen {interval(of['longer_chosen'])}; left chosen {interval(of['left_chosen'])}"
            for name, of in {"all": {**found}, **found["annotators"]}.items()
        ),
    ]


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

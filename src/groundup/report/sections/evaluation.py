from typing import Any

from groundup.report import figures
from groundup.report.formats import against, bounds, comparison, decimals, interval, percent
from groundup.report.run_results import RunResults

TITLE = "Evaluation: what the base model learned"
STAGES = ("evaluation",)


def gather(run: RunResults) -> dict[str, Any]:
    tested = run.results["evaluation"]
    bits = tested["bits_per_byte"]
    overall, ahead = bits["overall"], bits["ahead"]
    return {
        "facts": [("bits per byte, held-out", decimals(overall["model"]))],
        "compared": _compared(tested),
        "warned": "5-gram" in ahead and against(*ahead["5-gram"], 0) != "above",
        "tested": tested,
        "bits": bits,
        "beaten": all(against(*ahead[name], 0) == "above" for name in ahead) and bits["interval"][1] < overall["xz"],
        "bits_figure": figures.intervals(
            "bits",
            [
                ("this model", overall["model"], *bits["interval"]),
                *((name, value, None, None) for name, value in overall.items() if name != "model"),
            ],
            "bits per byte of held-out text, lower is better",
            percent=False,
        ),
        "pairs_figure": figures.intervals(
            "sentence-pairs", _accuracies(tested["sentence_pairs"]), "pairs decided rightly, %", ("coin flip", 0.5)
        )
        if tested["sentence_pairs"]
        else "",
        "choice_figure": figures.intervals(
            "multiple-choice",
            _accuracies({how: score for how, score in tested["multiple_choice"].items() if isinstance(score, dict)}),
            "questions answered rightly, %",
            ("chance", tested["multiple_choice"]["chance"]),
        )
        if tested["multiple_choice"]
        else "",
        "next_tokens": tested["next_tokens"],
    }


def _compared(tested: dict[str, Any]) -> list[dict[str, str]]:
    bits = tested["bits_per_byte"]
    low, high = bits["interval"]
    model = bits["overall"]["model"]
    result = f"{decimals(model)} ({bounds(low, high)})"
    lines = []
    for other, value in bits["overall"].items():
        if other == "model":
            continue
        # xz packs all documents as one, so there is no difference per document: the interval is the model's own.
        ahead = bits["ahead"].get(other, (value - high, value - low))
        kind = "a compressor" if other == "xz" else "counted word pieces"
        question, named = "Does it predict unseen text (bits per byte, lower is better)?", f"{other}, {kind}: {decimals(value)}"
        lines.append(comparison(question, result, named, value - model, *ahead, "bits"))
    accuracies = []
    if pairs := tested["sentence_pairs"]:
        accuracies.append(("Does it know a sentence from a muddle?", pairs["all"], "coin flip", 0.5))
    if choices := tested["multiple_choice"]:
        question = "Does it pick the right description out of four?"
        accuracies.append((question, choices["answer per byte"], "chance", choices["chance"]))
    for question, score, other, chance in accuracies:
        result = f"{percent(score['accuracy'])} ({interval(score)})"
        ahead = (score[name] - chance for name in ("accuracy", "low", "high"))
        lines.append(comparison(question, result, f"{other}: {percent(chance)}", *ahead))
    return lines


def _accuracies(scores: dict[str, dict[str, float]]) -> list[tuple[str, float, float, float]]:
    return [(name, score["accuracy"], score["low"], score["high"]) for name, score in scores.items()]

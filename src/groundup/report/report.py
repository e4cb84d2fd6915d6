"""The artifacts of a run -> one HTML page that needs nothing else.

`gather` reads everything into a plain dictionary, `render` fills `report.html.jinja`, which holds the words. Text from
pages and models is anybody's: it is escaped by the template, shown as text and never as a link, and characters that
cannot be seen, or that turn others around, are shown by their escapes.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.files import read_json, read_jsonl, write_text
from groundup.core.progress import duration
from groundup.core.seals import read_manifest
from groundup.core.text import visible
from groundup.corpus.annotate import personal
from groundup.corpus.tables import read_table
from groundup.pipeline.recipe import Recipe
from groundup.report import figures
from groundup.scaling.cost import LLAMA3_405B, cost
from groundup.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_TEXT = 200  # characters of a dropped document
SHOWN_ANSWER = 400
SHOWN_DROPPED = 3  # of each reason
SHOWN_SAMPLES = 10

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_SENTENCE = re.compile(r"(?<![^\s])[A-Z][a-z]*(?: [A-Za-z'-]+,?){7,18}\.(?!\S)")
_CODE_LINE = re.compile(r"^ +(?:return|if|for|def|raise) .{20,60}$", re.MULTILINE)


def write(path: Path, recipe: Recipe, inputs: dict[str, Path]) -> None:
    """Write the report of the finished stages in `inputs` (name -> folder, in the order of the road) to `path`.

    Raises UserError when an artifact is missing or damaged.
    """
    write_text(path, render(gather(recipe, inputs)))


def gather(recipe: Recipe, inputs: dict[str, Path]) -> dict[str, Any]:
    """Everything that the page shows, as plain data; figures are SVG elements."""
    manifests = {name: visible(read_manifest(folder)) for name, folder in inputs.items()}
    results = {name: manifest["results"] for name, manifest in manifests.items()}
    seconds = {name: float(manifest["seconds"]) for name, manifest in manifests.items()}
    steps = visible(read_json(inputs["corpus"] / "funnel.json"))
    settings = recipe.report
    return {
        "name": visible(recipe.name),
        "seed": recipe.seed,
        "settings": settings,
        "results": results,
        "seconds": seconds,
        "versions": next(iter(manifests.values()))["versions"],
        "funnel": steps,
        "dropped": _dropped(inputs["corpus"]),
        "examples": _tokenized(inputs["corpus"], Tokenizer.load(inputs["tokenizer"])),
        "samples": {stage: _samples(inputs[stage]) for stage in ("sft", "dpo", "ppo")},
        "cost": {
            stage: cost(spent, settings.watts, settings.price_per_hour, settings.grams_co2_per_kwh)
            for stage, spent in {**seconds, "all": sum(seconds.values())}.items()
        },
        "llama": LLAMA3_405B,
        "figures": _figures(results, steps, inputs),
    }


def templates(folder: Path) -> "Environment":
    """The page templates of a folder: everything that is put into them is escaped, and nothing may be missing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment


def render(found: dict[str, Any]) -> str:
    """What `gather` found -> HTML."""
    environment = templates(Path(__file__).parent)
    environment.filters |= {
        "duration": lambda seconds: duration(seconds) if seconds >= 1 else "< 1s",
        "log": math.log,
        "percent": lambda share: f"{share:.0%}".replace("%", "\u00a0%") if math.isfinite(share) else "not measured",
        "decimals": lambda value, places=2: f"{value:,.{places}f}" if math.isfinite(value) else "not measured",
    }
    environment.globals["against"] = against
    return environment.get_template("report.html.jinja").render(found)


def against(low: float, high: float, line: float) -> str:
    """Where an interval lies: "above" the line, "below" it, or "open" when the line is within (or nothing is known)."""
    if low > line:
        return "above"
    return "below" if high < line else "open"


def number(value: float) -> str:
    """1234567 -> '1.23 million'; powers of ten from 1e15."""
    if not math.isfinite(value):
        return "not measured"
    rounded = float(f"{value:.3g}") if abs(value) >= 1e6 else value  # 999,999,999 is a billion, not 1e+03 million
    if abs(rounded) >= 1e15:
        digits, exponent = f"{value:.1e}".split("e+")
        return f"{digits} × 10{exponent.translate(_RAISED)}"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g} {word}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _dropped(corpus: Path) -> dict[str, list[dict[str, str]]]:
    """A few dropped documents of each reason, in the order of the file, with personal data redacted."""
    rows = read_table(corpus / "dropped.parquet", ["id", "url", "text", "reason", "detail"]).to_pylist()
    kept = read_table(corpus / "documents.parquet", ["id", "url"]).to_pylist()
    urls = {row["id"]: row["url"] for row in [*kept, *rows]}
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        shown = found.setdefault(visible(row["reason"]), [])
        if len(shown) < SHOWN_DROPPED:
            detail = row["detail"]
            if detail.startswith("of "):  # a duplicate names the document that it repeats by its id
                detail = f"of {urls.get(detail[3:], detail[3:])}"
            # These were dropped before personal data was redacted. What spans the cut must not survive as a part.
            text = personal.redact(row["text"], personal.find(row["text"]))[:SHOWN_TEXT]
            shown.append(visible({"url": row["url"], "detail": detail, "text": text}))
    return found


def _tokenized(corpus: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """A sentence and a line of code from held-out documents, cut into tokens; fewer when there is none."""
    rows = read_table(corpus / "documents.parquet", ["split", "kind", "text"]).to_pylist()
    held_out = [row for row in rows if row["split"] == "held_out"]
    prose = (" ".join(row["text"].split()) for row in held_out if row["kind"] != "code")
    code = (row["text"] for row in held_out if row["kind"] == "code")
    examples = []
    for what, texts, pattern in (("A sentence", prose, _SENTENCE), ("A line of code", code, _CODE_LINE)):
        match = next((match for text in texts if (match := pattern.search(text))), None)
        if match:
            pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(match[0])]
            texts = [visible(piece.decode("utf-8", "backslashreplace")) for piece in pieces]
            examples.append({"what": what, "pieces": texts, "bytes": sum(map(len, pieces))})
    return examples


def _samples(folder: Path) -> list[dict[str, str]]:
    def cut(text: str) -> str:
        return text if len(text) <= SHOWN_ANSWER else text[:SHOWN_ANSWER] + " …"

    rows = read_jsonl(folder / "samples.jsonl")[:SHOWN_SAMPLES]
    return [{key: visible(cut(text)) for key, text in row.items()} for row in rows]


def _figures(results: dict[str, Any], funnel: dict[str, Any], inputs: dict[str, Path]) -> dict[str, str]:
    tested, tuned = results["evaluation"], results["sft"]["held_out"]
    metrics = {name: read_jsonl(inputs[name] / "metrics.jsonl") for name in ("base", "sft", "dpo")}
    millions = results["base"]["tokens"] / max(results["base"]["steps"], 1) / 1e6
    rollouts = read_jsonl(inputs["ppo"] / "rollouts.jsonl")
    scored = read_jsonl(inputs["reward"] / "scored.jsonl")
    bits = tested["bits_per_byte"]
    preferred = {name: results[name]["against_sft"] for name in ("dpo", "ppo")}
    steps = [("documents found", funnel["steps"][0]["before"]["by_domain"])] if funnel["steps"] else []
    return {
        "funnel": figures.funnel(
            "funnel", [*steps, *((step["step"], step["after"]["by_domain"]) for step in funnel["steps"])]
        ),
        "loss": figures.loss(
            "loss",
            [millions * (row["step"] + 1) for row in metrics["base"]],
            _column(metrics["base"], "loss"),
            [(millions * (row["step"] + 1), float(row["held_out"])) for row in metrics["base"] if "held_out" in row],
            _column(metrics["base"], "rate"),
        ),
        "bits": figures.intervals(
            "bits",
            [
                ("this model", bits["overall"]["model"], *bits["interval"]),
                *((name, value, None, None) for name, value in bits["overall"].items() if name != "model"),
            ],
            "bits per byte of held-out text (lower is better)",
            percent=False,
        ),
        "sentence_pairs": figures.intervals(
            "sentence-pairs", _shares(tested["sentence_pairs"]), "pairs decided rightly, %", ("coin flip", 0.5)
        ),
        "multiple_choice": figures.intervals(
            "multiple-choice",
            _shares({how: one for how, one in tested["multiple_choice"].items() if isinstance(one, dict)}),
            "questions answered rightly, %",
            ("chance", tested["multiple_choice"]["chance"]),
        ),
        "sft_loss": figures.panels(
            "sft-loss", "step", _column(metrics["sft"], "step"), {"loss, nats a token": _column(metrics["sft"], "loss")}
        ),
        "overlap": figures.intervals(
            "overlap",
            [
                ("base" if name == "base" else "after SFT", one["overlap"], one["low"], one["high"])
                for name, one in tuned["overlap"].items()
            ],
            "words shared with the right answer, %",
        ),
        "reward": figures.scatter(
            "reward",
            {
                side: [(row["tokens"], row["reward"]) for row in scored if row["side"] == side]
                for side in dict.fromkeys(row["side"] for row in scored)
            },
            "length of the answer, tokens",
            "reward",
        ),
        "dpo": figures.panels(
            "dpo",
            "step",
            _column(metrics["dpo"], "step"),
            {
                "loss (0.69 is undecided)": _column(metrics["dpo"], "loss"),
                "pairs ranked as the annotator did, share": _column(metrics["dpo"], "accuracy"),
            },
        ),
        "ppo": figures.panels(
            "ppo",
            "iteration",
            _column(rollouts, "iteration"),
            {
                "score from the reward model": _column(rollouts, "score"),
                "distance from SFT, nats an answer (KL)": _column(rollouts, "kl"),
                "length, tokens an answer": _column(rollouts, "length"),
            },
        ),
        "preferred": figures.intervals(
            "preferred",
            [(name.upper(), one["win_rate"], one["low"], one["high"]) for name, one in preferred.items()],
            "prompts on which it is preferred over SFT, %",
            ("equal", 0.5),
        ),
    }


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]  # what was not finite is on file as "nan" or "inf"


def _shares(scores: dict[str, dict[str, float]]) -> list[tuple[str, float, float, float]]:
    return [(name, one["accuracy"], one["low"], one["high"]) for name, one in scores.items()]

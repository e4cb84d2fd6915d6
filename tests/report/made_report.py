"""A finished run with made results, as small as it can be, and its report."""

from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.core.files import write_json, write_jsonl
from groundup.core.seals import read_sealed, write_sealed
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.steps import STANDARD
from groundup.report import report
from groundup.tokenizer.tokenizer import Tokenizer

RECIPE = Recipe.model_validate({"name": "trial <b>", "pages": {"sources": [{"source": "pydoc:", "domain": "docs"}]}})
HOSTILE = "<script>alert(1)</script>\x1b[31m\x00\u202eevil\"'>"
SHARE = {"accuracy": 0.6, "low": 0.5, "high": 0.7, "n": 40}
MACHINE = {"processor": "a processor <b>", "cores": 2, "memory_gb": 25.3, "system": "Linux x86_64"}
SENTENCE = "The little model reads a very long sentence about many small things."


def sizes(documents: int) -> dict:
    one = {"documents": documents, "bytes": documents * 1000, "words": documents * 100}
    return {**one, "by_domain": {"docs": one}}


def preferred(rate: float) -> dict:
    return {
        "win_rate": rate, "low": rate - 0.1, "high": rate + 0.1, "n": 50, "ties": 5, "mean_words": 8.0,
        "baseline_mean_words": 9.0, "ended": 0.5, "overlap": {"overlap": 0.3}, "baseline_overlap": {"overlap": 0.2},
        "gain": gained(0.1),
        "length": {
            "win_rate_at_equal_length": {"win_rate": rate, "low": rate - 0.2, "high": rate + 0.2, "n": 5, "ties": 0},
            "length_controlled": {"win_rate": rate - 0.05, "low": rate - 0.15, "high": rate + 0.05, "n": 50},
            "longer_wins": {"win_rate": 0.5, "low": 0.4, "high": 0.6, "n": 40, "ties": 0}, "ended": 0.5, "baseline_ended": 0.75,
        },
    }  # fmt: skip


def gained(by: float) -> dict:
    return {"difference": by, "low": by - 0.05, "high": by + 0.05, "n": 10}


RESULTS = {
    "pages": {"00-docs": {"source": "pydoc:", "domain": "docs", "pages": 12, "bytes": 24000, "refused": {}}},
    "annotations": {"pages": 12},
    "corpus": {},
    "tokenizer": {"vocabulary": 260, "bytes_per_token": {"docs": 1.0}, "longest_tokens": [" a", HOSTILE]},
    "tokens": {split: {"documents": 4, "tokens": 4000, "bytes": 4000} for split in ("train", "held_out")},
    "base": {
        "parameters": {"total": 1000, "without_embedding": 700}, "tokens": 64000, "flop": 3.0e8, "steps": 20,
        "mixture": {"stable": {"docs": {"share": 1.0, "repeats": 1.5, "tokens": 64000}}},
        "train_loss": 3.0, "train_loss_steps": 2, "held_out_loss": 3.5, "compiled": False, "skipped_steps": 0,
    },
    "evaluation": {
        "bits_per_byte": {
            "overall": {"model": 2.0, "3-gram": 2.5, "5-gram": 1.5, "xz": 2.05},
            "by_domain": {"docs": {"model": 2.0, "3-gram": 2.5, "5-gram": 1.5}},
            "interval": [1.9, 2.1],
            "ahead": {"3-gram": [0.1, 0.9], "5-gram": [-0.6, -0.4]},
            "ahead_by_domain": {"docs": {"3-gram": [0.1, 0.9], "5-gram": [-0.6, -0.4]}},
            "perplexity": 87.65, "documents": 13,
        },
        "next_tokens": [
            {"tokens": ["a", HOSTILE], "likeliest": [[(HOSTILE, 0.5), ("b", 0.25)], [("c", 0.75), (" \n", 0.125)]]}
        ],
        "sentence_pairs": {"scrambled": SHARE, "all": SHARE},
        "lecture_pairs": [{"right": "The mouse ate.", "wrong": "Ate mouse the.", "nats": [-9.0, -8.0]}],
        "multiple_choice": {
            **dict.fromkeys(("letter", "answer", "answer per byte"), SHARE), "chance": 0.25, "spread": 0.0,
        },
        "multiple_choice_example": {"question": "What?", "choices": ["a", "b", "c", "d"], "answer": 2, "object": "x"},
        "samples": [{"prompt": "def ", "text": HOSTILE}],
    },
    "sft": {
        "questions": {"train": 30, "preference": 10, "held_out": 4321, "asked": 10}, "steps": 20,
        "held_out": {
            "overlap": {name: {"overlap": 0.2, "low": 0.1, "high": 0.3, "n": 10} for name in ("base", "sft")},
            "gain": gained(0.1),
            "answer_loss": {"base": 5.0, "sft": 1.25, "conversations": 10, "tokens": 99},
            "form": {"words": 7.5, "ended": 0.9, "reference_words": 6.5},
            "overlap_by_kind": {
                "kind": {"base": 0.1, "sft": 0.3, "gain": gained(0.2)}, "name": {"base": 0.1, "sft": 0.2, "gain": gained(0.1)},
            },
        },
    },
    "preferences": {
        "annotator": "simulated",
        **{part: {"prompts": 10, "pairs": 6, "ties": 4} for part in ("train", "held_out")},
    },
    "reward": {"accuracy": SHARE, "longer_wins": 0.4, "ahead_of_longer": gained(0.2),
        "reward_mean": 0.0, "reward_std": 1.0, "length_correlation": 0.1, "pairs": {"train": 6, "held_out": 6}},
    "dpo": {
        "steps": 20, "against_sft": preferred(0.7),
        "held_out": {
            "accuracy": {**SHARE, "n": 77}, "longer_wins": 0.4, "length_correlation": 0.31, "answers": 32,
            "words": {"before": 5.5, "after": 8.5}, "ended": {"before": 0.9, "after": 0.6},
        },
    },
    "ppo": {
        "iterations": 2, "first": {"score": 0.0}, "last": {"score": 1.0}, "against_sft": preferred(0.2),
        "concerns": ["Answers stop ending: 3%"],
        "held_out": {
            "prompts": 7, "reward": {"before": 0.25, "after": 0.75}, "length": {"before": 9.0, "after": 8.0},
            "ended": {"before": 1.0, "after": 0.5}, "gain": {"difference": 0.5, "low": 0.25, "high": 0.625, "n": 7},
        },
    },
}  # fmt: skip


def finished(folder: Path) -> dict[str, Path]:
    """The artifacts of a run, as small as they can be, with hostile text wherever text is anybody's."""
    folders = {name: folder / name for name in STANDARD[-1].needs}
    for number, (name, folder) in enumerate(folders.items()):
        manifest = {"results": RESULTS[name], "seconds": 61.0 + number, "versions": {"groundup": "0"}, "machine": MACHINE}
        write_sealed(folder / "stage.json", {"stage": name, "key": {}, "outputs": {}, "digest": "", **manifest})
    step = {"before": sizes(12), "after": sizes(11)}
    funnel = {
        "steps": [
            {"step": "exact duplicate", "dropped": 1, "code_exempt": 0, **step, "samples": []},
            {"step": "personal data redacted", "changed": {"email": 3}, **step},
        ],
        "left": sizes(11),
        "published_thresholds": [
            {"column": "words", "minimum": 50, "paper": "Gopher", "note": "", "would_drop": 3, "of": 12}
        ],
    }
    write_json(folders["corpus"] / "funnel.json", funnel)
    code = "    return ['é' for _ in range(9)]"
    documents = [
        {"id": "a", "url": "file:///a", "split": "held_out", "kind": "text", "text": f"Title\n{SENTENCE} More."},
        {"id": "b", "url": "file:///b", "split": "held_out", "kind": "code", "text": code},
    ]
    pq.write_table(pa.Table.from_pylist(documents), folders["corpus"] / "documents.parquet")
    text = f"write to jane.doe@python.org {HOSTILE}" + "x" * 400
    dropped = [{"id": "c", "url": HOSTILE, "text": text, "reason": "exact duplicate", "detail": "of a"}]
    pq.write_table(pa.Table.from_pylist(dropped), folders["corpus"] / "dropped.parquet")
    Tokenizer.from_merges([(b" ", b"a")]).save(folders["tokenizer"])
    losses = [{"step": step, "loss": 5 / (step + 1), "accuracy": 0.5, "lr": 1.0} for step in range(20)]
    for step in (3, 19):
        losses[step] |= {"held_out": 4.0, "held_out_loss": 0.625, "held_out_accuracy": 0.75, "held_out_pairs": 12}
    losses[5]["loss"] = "nan"
    for name in ("base", "sft", "dpo"):
        write_jsonl(folders[name] / "training" / "metrics.jsonl", losses)
    form = {"length": 9.0, "ended": 0.5, "reward_length_correlation": 0.25}
    rollouts = [{"iteration": number, "score": 0.5, "kl": 0.1, **form} for number in range(2)]
    write_jsonl(folders["ppo"] / "training" / "rollouts.jsonl", rollouts)
    on_the_way = [{"step": 9, "question": HOSTILE, "answer": "said at 9", "ended": True}]
    write_jsonl(folders["sft"] / "training" / "answers.jsonl", on_the_way)
    answered = [{"iteration": n // 3, "question": HOSTILE, "answer": f"answer {n}", "reward": 0.125 * n} for n in range(6)]
    write_jsonl(folders["ppo"] / "training" / "rollout_samples.jsonl", answered)
    scored = [{"reward": 0.5, "tokens": 9, "side": side} for side in ("chosen", "rejected")]
    write_jsonl(folders["reward"] / "training" / "scored.jsonl", scored)
    one = {"question": HOSTILE, "reference": "Yes.", "base": HOSTILE, "sft": "", "before": HOSTILE, "after": "No."}
    for name in ("sft", "dpo", "ppo"):
        write_jsonl(folders[name] / "training" / "samples.jsonl", [one])
    return folders


def page(run: dict[str, Path], folder: Path | None = None) -> str:
    path = (folder or run["corpus"].parent) / "report.html"
    report.write(path, RECIPE.model_dump(), run)
    return path.read_text(encoding="utf-8")


def change(run: dict[str, Path], stage: str, **results: object) -> None:
    path = run[stage] / "stage.json"
    manifest = read_sealed(path)
    manifest["results"] |= results
    write_sealed(path, manifest)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.open.pop() == tag

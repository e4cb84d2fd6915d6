import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.files import write_json, write_jsonl
from groundup.core.seals import read_sealed, write_sealed
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.steps import STANDARD
from groundup.report import report
from groundup.tokenizer.tokenizer import Tokenizer

RECIPE = Recipe.model_validate({"name": "trial <b>", "pages": {"sources": [{"source": "pydoc:", "domain": "docs"}]}})
HOSTILE = "<script>alert(1)</script>\x1b[31m\x00\u202eevil\"'>"
SHARE = {"accuracy": 0.6, "low": 0.5, "high": 0.7, "n": 40}
SENTENCE = "The little model reads a very long sentence about many small things."


def sizes(documents: int) -> dict:
    one = {"documents": documents, "bytes": documents * 1000, "words": documents * 100}
    return {**one, "by_domain": {"docs": one}}


def preferred(rate: float) -> dict:
    return {
        "win_rate": rate, "low": rate - 0.1, "high": rate + 0.1, "n": 50, "ties": 5, "mean_words": 8.0,
        "baseline_mean_words": 9.0, "ended": 0.5,
    }  # fmt: skip


RESULTS = {
    "pages": {"00-docs": {"source": "pydoc:", "domain": "docs", "pages": 12, "bytes": 24000, "refused": {}}},
    "annotations": {"pages": 12},
    "corpus": {},
    "tokenizer": {"vocabulary": 260, "bytes_per_token": {"docs": 1.0}, "longest_tokens": [" a", "\n"]},
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
        },
        "sentence_pairs": {"scrambled": SHARE, "all": SHARE},
        "lecture_pairs": [{"right": "The mouse ate.", "wrong": "Ate mouse the.", "nats": [-9.0, -8.0]}],
        "multiple_choice": {
            **dict.fromkeys(("letter", "answer", "answer per byte"), SHARE), "chance": 0.25, "spread": 0.0,
        },
        "multiple_choice_example": {"question": "What?", "choices": ["a", "b", "c", "d"], "answer": 2, "object": "x"},
        "samples": [{"prompt": "def ", "text": HOSTILE}],
    },
    "sft": {
        "questions": {"train": 30, "preference": 10, "held_out": 10}, "steps": 4,
        "held_out": {
            "overlap": {name: {"overlap": 0.2, "low": 0.1, "high": 0.3, "n": 10} for name in ("base", "sft")},
            "overlap_by_kind": {"kind": {"base": 0.1, "sft": 0.3}, "name": {"base": 0.1, "sft": 0.2}},
        },
    },
    "preferences": {
        "annotator": "simulated",
        **{part: {"prompts": 10, "pairs": 6, "ties": 4} for part in ("train", "held_out")},
    },
    "reward": {"accuracy": SHARE, "longer_wins": 0.4, "mean": 0.0, "deviation": 1.0, "length_correlation": 0.1},
    "dpo": {"steps": 2, "against_sft": preferred(0.7)},
    "ppo": {
        "iterations": 2, "first": {"score": 0.0}, "last": {"score": 1.0}, "against_sft": preferred(0.2),
    },
}  # fmt: skip


def finished(folder: Path) -> dict[str, Path]:
    """The artifacts of a run, as small as they can be, with hostile text wherever text is anybody's."""
    folders = {name: folder / name for name in STANDARD[-1].needs}
    for number, (name, folder) in enumerate(folders.items()):
        manifest = {"results": RESULTS[name], "seconds": 61.0 + number, "versions": {"groundup": "0"}}
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
    losses = [{"step": step, "loss": 5 / (step + 1), "accuracy": 0.5, "rate": 1.0} for step in range(20)]
    losses[3]["held_out"] = 4.0
    losses[5]["loss"] = "nan"
    for name in ("base", "sft", "dpo"):
        write_jsonl(folders[name] / "metrics.jsonl", losses)
    rollouts = [{"iteration": number, "score": 0.5, "kl": 0.1, "length": 9.0} for number in range(2)]
    write_jsonl(folders["ppo"] / "rollouts.jsonl", rollouts)
    scored = [{"reward": 0.5, "tokens": 9, "side": side} for side in ("chosen", "rejected")]
    write_jsonl(folders["reward"] / "scored.jsonl", scored)
    one = {"question": HOSTILE, "reference": "Yes.", "base": HOSTILE, "sft": "", "before": HOSTILE, "after": "No."}
    for name in ("sft", "dpo", "ppo"):
        write_jsonl(folders[name] / "samples.jsonl", [one])
    return folders


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Path]:
    return finished(tmp_path)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(finished(tmp_path_factory.mktemp("run")))


def page(run: dict[str, Path]) -> str:
    path = run["corpus"].parent / "report.html"
    report.write(path, RECIPE, run)
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


def test_same_inputs_same_bytes(run, text):
    assert page(run) == text


def test_stands_alone(text):
    elements = Elements(text)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert "svg" in tags
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    for _, attributes in elements.found:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or (target.startswith("#") and target[1:] in ids)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text.encode()) < 1_500_000


def test_ids_are_unique(text):
    ids = [attributes["id"] for _, attributes in Elements(text).found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_foreign_text_is_shown_as_text(text):
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\x00\\u202eevil" in text
    assert "trial &lt;b&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_dropped_documents_are_cut_redacted_and_name_what_they_repeat(text):
    assert "jane.doe" not in text
    assert "x" * report.SHOWN_TEXT not in text
    assert "of file:///a" in text


def test_every_figure_is_explained_in_two_sentences(text):
    captions = re.findall(
        r"<figcaption><strong>(.*?)</strong> <span>(.*?)</span> <span>(.*?)</span></figcaption>", text, re.S
    )
    assert len(captions) == text.count("<figure") > 20
    for title, *sentences in captions:
        for sentence in sentences:
            assert len(re.findall(r"[.?!](?=\s|$)", sentence.strip())) == 1 and sentence.strip().endswith("."), title


def test_drawings_have_words_and_tables_have_headers(text):
    found = Elements(text).found
    drawings = [attributes for _, attributes in found if attributes.get("role") == "img"]
    assert drawings and all(attributes["aria-label"].strip() for attributes in drawings)
    assert all("scope" in attributes for tag, attributes in found if tag == "th")


def test_says_when_a_result_is_not_good(text):
    rows = dict(re.findall(r'<td>([^<]*?)</td>\s*<td class="(good|bad|open)">', text))
    assert rows["3-gram, counted word pieces: 2.50"] == "good"
    assert rows["5-gram, counted word pieces: 1.50"] == "bad"
    assert rows["xz, a compressor: 2.05"] == "open"
    assert "Be warned" in text
    assert "here DPO is clearly preferred and PPO is clearly worse than what it started from" in text


def test_says_how_many_steps_were_skipped_and_why(run, text):
    assert "skipped" not in text
    change(run, "base", skipped_steps=3)
    assert "no number or the loss far above those before: 3)" in page(run)


def test_does_not_warn_of_a_good_model(run):
    ahead = {"3-gram": [0.1, 0.2], "5-gram": [0.1, 0.2]}
    change(run, "evaluation", bits_per_byte=RESULTS["evaluation"]["bits_per_byte"] | {"ahead": ahead})
    assert "Be warned" not in page(run)


def test_says_what_the_judge_was_tested_on(run, text):
    assert "40 held-out pairs." in text
    change(run, "preferences", held_out={"prompts": 10, "pairs": 0, "ties": 10})
    assert "that it was trained on, because no held-out question had a winner" in page(run)


def test_shows_tokens_of_a_held_out_sentence(text):
    assert "<span> a</span><span>b</span><span>o</span><span>u</span><span>t</span>" in text
    assert r"<span>\xc3</span><span>\xa9</span>" in text


def test_missing_pieces_are_left_out(run):
    for name in ("sft", "dpo", "ppo"):
        write_jsonl(run[name] / "samples.jsonl", [])
    write_jsonl(run["reward"] / "scored.jsonl", [])
    write_jsonl(run["base"] / "metrics.jsonl", [{"step": 0, "loss": 5.0, "rate": 1.0}])
    empty = pq.read_table(run["corpus"] / "dropped.parquet").slice(0, 0)
    pq.write_table(empty, run["corpus"] / "dropped.parquet")
    documents = pq.read_table(run["corpus"] / "documents.parquet").slice(0, 0)
    pq.write_table(documents, run["corpus"] / "documents.parquet")
    unknown = {**RESULTS["reward"], "accuracy": {"accuracy": math.nan, "low": 0.0, "high": 1.0, "n": 0}}
    change(run, "reward", **unknown)
    text = page(run)
    assert "No document was dropped" in text and "Cut into tokens" not in text and "not measured" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12, "12"), (0.1234, "0.123"), (99_999, "99,999"), (1.234e6, "1.23 million"), (15.6e12, "15.6 trillion"),
     (3.8e25, "3.8 × 10²⁵"), (math.nan, "not measured"), (999_999_999, "1 billion"), (-999.9e12, "-1.0 × 10¹⁵"),
     (9.97e15, "1.0 × 10¹⁶"), (999_999, "999,999")],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
    assert report.number(value) == text


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_against_decides_only_when_the_line_is_outside(one, other, line):
    low, high = sorted((one, other))
    assert report.against(low, high, line) == ("open" if low <= line <= high else "above" if line < low else "below")

import base64
import hashlib
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from groundup import cli
from groundup.core.errors import UserError
from groundup.core.files import write_json, write_jsonl
from groundup.core.seals import read_sealed, write_sealed
from groundup.pipeline import recipe as recipes
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.steps import STANDARD
from groundup.report import report, words
from groundup.report.made import Made
from groundup.report.sections import SECTIONS, origin
from groundup.report.sections.corpus import SHOWN_TEXT
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


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Path]:
    return finished(tmp_path)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(finished(tmp_path_factory.mktemp("run")))


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


def test_same_inputs_same_bytes(run):
    assert page(run) == page(run)


def test_stands_alone(text):
    elements = Elements(text)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert "svg" in tags
    assert not tags & {"link", "img", "iframe", "object", "embed", "form", "base"}
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    for _, attributes in elements.found:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or (target[1:] in ids if target.startswith("#") else re.fullmatch(r"[\w/.%-]+", target))
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text.encode()) < 1_500_000


def test_ids_are_unique(text):
    ids = [attributes["id"] for _, attributes in Elements(text).found if "id" in attributes]
    assert len(ids) == len(set(ids))


def scripts(text: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", text, re.S)


def test_only_our_own_script_may_run(text):
    [script] = scripts(text)
    [policy] = re.findall(r'"Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http" not in script and "innerHTML" not in script


def test_foreign_text_is_shown_as_text(text):
    assert text.count("<script") == 1 and "<script" not in text[: text.index("<main>")]
    assert text.count("&lt;script&gt;") >= 10  # titles, addresses, questions, answers, tokens
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\x00\\u202eevil" in text
    assert "trial &lt;b&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_dropped_documents_are_cut_redacted_and_name_what_they_repeat(text):
    assert "jane.doe" not in text
    assert "x" * SHOWN_TEXT not in text
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
    rows = compared(text)
    assert rows["3-gram, counted word pieces: 2.50"] == ("0.50 bits (0.10 to 0.90)", "better")
    assert rows["5-gram, counted word pieces: 1.50"] == ("−0.50 bits (−0.60 to −0.40)", "worse")
    assert rows["xz, a compressor: 2.05"] == ("0.05 bits (−0.05 to 0.15)", "cannot be told apart")
    assert rows["always preferring the longer answer: 40\u00a0%"] == ("20.0 points (15.0 to 25.0)", "better")
    assert "Be warned" in text
    assert "DPO is clearly preferred, as the interval of 60 to 80\u00a0% does not hold the line" in text
    assert "PPO is clearly worse than what it started from" in text


def test_shows_what_ppo_answered_on_the_way_and_on_held_out_prompts(text):
    assert "said at 9" in text  # by SFT
    assert [f"answer {number}" in text for number in range(6)] == [True, True, False, True, True, False]  # two of each rollout
    assert "The reward went from 0.25 to 0.75, a difference of 0.50 (0.25 to 0.62)" in text or "0.25 to 0.63" in text


def compared(text: str) -> dict[str, tuple[str, str]]:
    """What is compared with -> (difference and interval, verdict)."""
    cell = r'<td data-title="{}"[^>]*>([^<]*)</td>\s*'
    rows = re.findall("".join(map(cell.format, ("Compared with", "Ahead by", "Verdict"))), text)
    return {other: (ahead, verdict) for other, ahead, verdict in rows}


def test_a_verdict_is_that_of_the_paired_difference(run):
    """Both intervals hold the other's mean, and yet question by question the gain is certain; and the other way round."""
    overlap = {name: {"overlap": value, "low": 0.1, "high": 0.4, "n": 10} for name, value in (("base", 0.2), ("sft", 0.3))}
    for gain, verdict in ((gained(0.1), "better"), (gained(-0.1), "worse"), (gained(0.01), "cannot be told apart")):
        change(run, "sft", held_out=RESULTS["sft"]["held_out"] | {"overlap": overlap, "gain": gain})
        [row] = [row for other, row in compared(page(run)).items() if other.startswith("base model")]
        assert row[1] == verdict and f"{100 * gain['difference']:.1f}".replace("-", "−") in row[0]


def test_the_numbers_are_those_of_the_stages(text):
    assert "It is tested on 10 questions" in text and "4,321 that are held out" in text
    assert "The model&#39;s perplexity is 87.7" in text or "The model's perplexity is 87.7" in text
    assert "held-out pairs ended at a loss of 0.62 and a share of 0.75" in text and "on 12 held-out ones" in text
    assert "loss on held-out documents after the last step, nats a token" in text and "3.50" in text
    assert "a processor &lt;b&gt;, 2 cores, 25.3 GB of memory, Linux x86_64" in text and "<dd>groundup 0</dd>" in text
    assert re.search(r"<dt>seed</dt><dd>0</dd>", text)


def test_stages_that_were_made_elsewhere_are_named(run):
    path = run["ppo"] / "stage.json"
    write_sealed(path, read_sealed(path) | {"versions": {"groundup": "1"}, "machine": {**MACHINE, "cores": 64}})
    text = page(run)
    assert "<dt>versions (ppo)</dt><dd>groundup 1</dd>" in text and "<dt>machine (ppo)</dt>" in text
    assert "64 cores" in text and "<dd>groundup 0</dd>" in text


def test_raw_files_are_linked_and_there(run, text):
    page(run)
    links = [attributes["href"] for tag, attributes in Elements(text).found if tag == "a"]
    files = [link for link in links if not link.startswith("#")]
    here = run["corpus"].parent
    assert {"base/training/metrics.jsonl", "sft/stage.json", "corpus/funnel.json", "ppo/training/rollouts.jsonl"} <= set(files)
    assert all((here / link).is_file() for link in files)


def test_the_recipe_beside_the_page_is_the_one_of_the_run(run, text):
    page(run)
    assert recipes.load(run["corpus"].parent / "recipe.toml") == RECIPE
    assert "learning_rate = 0.0005" in text


@pytest.mark.parametrize("last", ["corpus", "base", "sft", "ppo"])
def test_what_to_try_next_are_commands_that_there_are(run, last):
    kept = {name: run[name] for name in list(run)[: list(run).index(last) + 1]}
    found = origin.commands(Made(RECIPE.model_dump(), kept, run["corpus"].parent / "report"))
    assert len({what for what, _ in found}) == len(found) >= 2
    for _, command in found:
        program, *words = shlex.split(command)
        assert program == "groundup"
        target = typer.main.get_command(cli.app)
        context = target.make_context("groundup", [], resilient_parsing=True)
        while hasattr(target, "get_command"):
            target = target.get_command(context, words.pop(0))
            assert target is not None, command
        parsed = target.make_context(target.name, words)  # raises where an option does not exist
        for setting in parsed.params.get("settings") or []:
            recipes.resolve(RECIPE.model_dump(exclude_none=True), [setting], "here")


def test_pages_of_examples_are_folded(text):
    outside = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    assert "samples stacked" in text and "samples stacked" not in outside
    assert 'class="dropped"' in text and 'class="dropped"' not in outside and "<details open" not in text


@pytest.mark.parametrize("made", range(1, len(STANDARD[-1].needs)))
def test_a_run_that_is_not_finished_shows_what_there_is(run, made):
    names = list(run)[:made]
    text = page({name: run[name] for name in names}, run["corpus"].parent)
    elements = Elements(text)
    assert elements.open == [] and "has not come to its end" in text
    shown = {attributes["id"] for tag, attributes in elements.found if tag == "section"}
    expected = {section.__name__.rpartition(".")[2] for section in SECTIONS if not section.STAGES or {*section.STAGES} & {*names}}
    assert shown == expected | {"summary"}
    for tag, attributes in elements.found:
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in shown


def test_no_stage_at_all(tmp_path):
    with pytest.raises(UserError, match="no finished stage"):
        report.write(tmp_path / "report.html", RECIPE.model_dump(), {})


def test_a_stage_of_another_version_is_named(run):
    path = run["sft"] / "stage.json"
    manifest = read_sealed(path)
    del manifest["results"]["held_out"]["gain"]
    write_sealed(path, manifest)
    with pytest.raises(UserError, match=r"sft has no 'gain', so another version of groundup made it; delete that folder"):
        page(run)


def test_the_style_lets_nothing_out_of_its_box():
    """Tables scroll inside their box or are stacked on a phone; long words break; nothing is placed outside."""
    style = (report.HERE / "report.css").read_text()
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style) and "overflow-wrap: anywhere" in style
    assert not re.search(r"(?:left|right|margin[a-z-]*): -", style) and "http" not in style
    templates = "".join(path.read_text() for path in report.HERE.rglob("*.jinja"))
    for table in re.findall(r"(.*)<table([^>]*)>", templates):
        assert 'class="scroll"' in table[0] or "stacked" in table[1] or "hidden" in table[1], table


def test_says_how_many_steps_were_skipped_and_why(run, text):
    assert "skipped" not in text
    change(run, "base", skipped_steps=3)
    assert "no number or the loss far above those before: 3)" in page(run)


def test_does_not_warn_of_a_good_model(run):
    ahead = {"3-gram": [0.1, 0.2], "5-gram": [0.1, 0.2]}
    change(run, "evaluation", bits_per_byte=RESULTS["evaluation"]["bits_per_byte"] | {"ahead": ahead})
    assert "Be warned" not in page(run)


def test_says_what_the_judge_was_tested_on(run, text):
    assert "on 40 held-out pairs." in text
    change(run, "reward", pairs={"train": 6, "held_out": 0})
    assert "that it was trained on, because no held-out question had a winner" in page(run)


def test_says_whose_questions_were_learned_and_how_well(run, text):
    assert "taken from\nthe documentation itself" in text and "its loss is 1.25 nats a token, that of the base model 5.00" in text
    change(run, "sft", held_out=RESULTS["sft"]["held_out"] | {"overlap_by_kind": {
        "conversation": {"base": 0.1, "sft": 0.3, "gain": gained(0.2)}}})  # fmt: skip
    assert "taken from\nconversations that were given" in page(run)


def test_what_was_skipped_is_said_with_its_reason_and_has_no_section(run):
    for stage in ("sft", "preferences", "reward", "dpo", "ppo"):
        change(run, stage, skipped="no questions <b>at all</b>")
    change(run, "evaluation", multiple_choice=None, multiple_choice_example=None, sentence_pairs=None)
    found = page(run)
    assert "Sentence or muddle" not in found and "sentence from a muddle" not in found
    assert "Skipped, as there was nothing to work on: sft (no questions &lt;b&gt;at all" in found and 'id="sft"' not in found
    assert "Multiple choice" not in found and "has not come to its end" not in found


def test_length_and_ends_are_said_after_fine_tuning_and_dpo(run, text):
    flat = " ".join(text.split())
    assert "Its answers have 7.5 words, the right ones 6.5; 90 % of them end by themselves." in flat
    assert "On 77 held-out pairs its liking" in flat and "correlation of that liking with an answer's length is 0.31." in flat
    assert "Its answers to 32 held-out prompts have 8.5 words, 5.5 before; 60 % end by themselves, 90 % before." in flat
    change(run, "dpo", held_out={})
    assert "held-out pairs its liking" not in page(run)


def test_a_policy_without_held_out_questions_is_not_compared(run):
    change(run, "dpo", against_sft=None)
    found = page(run)
    assert "DPO training" in found and "Is DPO preferred" not in found and "Is PPO preferred" in found


def test_shows_tokens_of_a_held_out_sentence(text):
    assert "<span> a</span><span>b</span><span>o</span><span>u</span><span>t</span>" in text
    assert r"<span>\xc3</span><span>\xa9</span>" in text


def test_missing_pieces_are_left_out(run):
    for name in ("sft", "dpo", "ppo"):
        write_jsonl(run[name] / "training" / "samples.jsonl", [])
    write_jsonl(run["reward"] / "training" / "scored.jsonl", [])
    write_jsonl(run["base"] / "training" / "metrics.jsonl", [{"step": 0, "loss": 5.0, "lr": 1.0}])
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
    assert words.number(value) == text


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_against_decides_only_when_the_line_is_outside(one, other, line):
    low, high = sorted((one, other))
    assert words.against(low, high, line) == ("open" if low <= line <= high else "above" if line < low else "below")


def check_layout(found: dict) -> None:
    """`found` is what `laid_out` gives: of windows of 390 and 1280 px, with scripts on and off."""
    assert found.keys() == {"390 on", "390 off", "1280 on", "1280 off"}
    for name, one in found.items():
        assert one["viewport"] == int(name.split()[0]) and one["sections"] >= 3, name
        assert one["width"] <= one["viewport"] and one["outside"] == [] and one["uncut"], (name, one)
        if one["tables"]:
            assert one["before"] == one["tables"] - 1, "of each text what comes after its last token"
            assert one["after"] == (0 if name.endswith("on") else one["before"]), name
            assert one["disabled"] is not name.endswith("on")


def test_hostile_text_and_long_words_stay_in_the_window(run, laid_out):
    texts = [HOSTILE, "x" * 500]
    change(run, "tokenizer", longest_tokens=texts, bytes_per_token=dict.fromkeys(texts, 1.0))
    change(run, "pages", **{"00-docs": RESULTS["pages"]["00-docs"] | {"source": texts[1], "domain": HOSTILE}})
    page(run)
    check_layout(laid_out(run["corpus"].parent / "report.html"))


def test_the_page_of_a_run_stays_in_the_window(tiny_run, laid_out):
    found = laid_out(tiny_run.folder / "report" / "report.html")
    check_layout(found)
    assert all(one["tables"] for one in found.values())


def test_a_half_run_stays_in_the_window(run, laid_out):
    page({name: run[name] for name in ("pages", "annotations", "corpus", "tokenizer")})
    check_layout(laid_out(run["corpus"].parent / "report.html"))


def test_steps_that_a_recipe_adds_have_sections_of_their_own(tmp_path):
    run = finished(tmp_path / "run")
    for kind, name in (("base", "deep"), ("sft", "gentle")):
        shutil.copytree(run[kind], run[kind].parent / name)
        manifest = read_sealed(run[kind] / "stage.json")
        manifest["key"] = {"recipe": {kind: {**RECIPE.model_dump()[kind], "epochs": 3}}} if kind == "sft" else {}
        write_sealed(run[kind].parent / name / "stage.json", {key: one for key, one in manifest.items() if key != "seal"})
        run[name] = run[kind].parent / name
    recipe = RECIPE.model_dump() | {"steps": [{"kind": "base", "name": "deep"}, {"kind": "sft", "name": "gentle"}]}
    (tmp_path / "report").mkdir()
    report.write(tmp_path / "report" / "report.html", recipe, run)
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'href="#base-deep"' in page and 'href="#sft-gentle"' in page
    assert "Base model: learning to predict: deep" in page and "gentle: Do its answers improve" in page
    ids = re.findall(r'\bid="([^"]+)"', page[page.index('<section id="base-deep"') :])
    assert len(ids) == len(set(ids)) and {"base-deep", "sft-gentle"} <= set(ids)
    assert set(ids).isdisjoint(re.findall(r'\bid="([^"]+)"', page[: page.index('<section id="base-deep"')]))

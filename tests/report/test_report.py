"""What the report says of a run."""

import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from groundup import cli
from groundup.core.errors import UserError
from groundup.core.files import write_jsonl
from groundup.core.seals import read_sealed, write_sealed
from groundup.pipeline import recipe as recipes
from groundup.pipeline.steps import STANDARD
from groundup.report import formats, report
from groundup.report.run_results import RunResults
from groundup.report.sections import SECTIONS, origin

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path

from made_report import MACHINE, RECIPE, RESULTS, Elements, change, finished, gained, page


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


def test_what_was_measured_on_one_document_and_one_question_has_no_interval(run):
    bits = RESULTS["evaluation"]["bits_per_byte"]
    unknown = (-math.inf, math.inf)
    domains = {domain: dict.fromkeys(ahead, unknown) for domain, ahead in bits["ahead_by_domain"].items()}
    one = {"interval": unknown, "ahead": dict.fromkeys(bits["ahead"], unknown), "ahead_by_domain": domains}
    change(run, "evaluation", bits_per_byte=bits | one)
    held_out = RESULTS["sft"]["held_out"]
    overlap = {name: value | {"low": -math.inf, "high": math.inf, "n": 1} for name, value in held_out["overlap"].items()}
    change(run, "sft", held_out=held_out | {"overlap": overlap})
    text = page(run)
    assert compared(text)["3-gram, counted word pieces: 2.50"] == ("not measured", "cannot be told apart")
    assert "0.50 (no interval)" in text and "(no interval)" in text.partition("words right")[2][:40]
    assert "not measured to" not in text


def test_the_numbers_are_those_of_the_stages(text):
    assert "It is tested on 10 questions" in text and "4,321 that are held out" in text
    assert "The model&#39;s perplexity is 87.7" in text or "The model's perplexity is 87.7" in text
    assert "held-out pairs ended at a loss of 0.62 and a share of 0.75" in text and "on 12 held-out ones" in text
    assert "loss on held-out documents after the last step, nats per token" in text and "3.50" in text
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
    found = origin.commands(RunResults(RECIPE.model_dump(), kept, run["corpus"].parent / "report"))
    assert len({what for what, _ in found}) == len(found) >= 1
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


@pytest.mark.parametrize("made", range(1, len(STANDARD[-1].needs)))
def test_a_run_of_fewer_steps_shows_what_there_is_and_is_not_called_unfinished(run, made):
    names = list(run)[:made]
    text = page({name: run[name] for name in names}, run["corpus"].parent)
    elements = Elements(text)
    assert elements.open == [] and "not finished" not in text and "Resume this run" not in text
    assert ("What to try next" in text) == ("corpus" in names)  # the first step after which there is a command
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


def test_says_how_many_steps_were_skipped_and_why(run, text):
    assert "skipped" not in text
    change(run, "base", skipped_steps=3)
    assert "no number or the loss far above those before: 3)" in page(run)


def test_does_not_warn_of_a_good_model(run):
    ahead = {"3-gram": [0.1, 0.2], "5-gram": [0.1, 0.2]}
    change(run, "evaluation", bits_per_byte=RESULTS["evaluation"]["bits_per_byte"] | {"ahead": ahead})
    assert "Be warned" not in page(run)


def test_says_what_the_reward_model_was_tested_on(run, text):
    assert "on 40 held-out pairs." in text
    change(run, "reward", pairs={"train": 6, "held_out": 0})
    assert "that it was trained on, because no held-out question had a winner" in page(run)


def test_says_whose_questions_were_learned_and_how_well(run, text):
    assert "taken from\nthe documentation itself" in text
    assert "its loss is 1.25 nats per token, that of the base model 5.00" in text
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
    assert "Multiple choice" not in found


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
    assert formats.number(value) == text


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_against_decides_only_when_the_line_is_outside(one, other, line):
    low, high = sorted((one, other))
    assert formats.against(low, high, line) == ("open" if low <= line <= high else "above" if line < low else "below")


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


def test_the_section_of_an_added_step_is_of_its_own_inputs(tmp_path):
    run = finished(tmp_path / "run")
    inputs = {"tokenizer": {}, "base": {"tokenizer": "of small"}}
    for kind, name in (("tokenizer", "small"), ("base", "of-small")):
        shutil.copytree(run[kind], run[kind].parent / name)
        manifest = {**read_sealed(run[kind] / "stage.json"), "key": {"inputs": inputs[kind]}, "digest": f"of {name}"}
        write_sealed(run[kind].parent / name / "stage.json", {key: one for key, one in manifest.items() if key != "seal"})
        run[name] = run[kind].parent / name
    change(run, "small", vocabulary=20)
    steps = [{"kind": "tokenizer", "name": "small"}, {"kind": "base", "name": "of-small"}]
    sections = report.gather(RunResults(RECIPE.model_dump() | {"steps": steps}, run, tmp_path))["sections"]
    assert [sections[name]["blind"] for name in ("base", "base-of-small")] == [math.log(260), math.log(20)]
    assert sections["tokenizer"]["tokens"] and not sections["tokenizer-small"]["tokens"]  # those are of the other tokenizer

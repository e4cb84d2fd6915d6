"""What would end a late stage is said after `corpus`, before the tokenizer and the model, or before anything at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.data.docstring_questions import STDLIB
from groundup.generation.open_folder import model_folder
from groundup.pipeline import preflight, steps
from groundup.pipeline.recipe import Recipe, resolve
from groundup.pipeline.run import Run, Step, write_manifest

SOURCE = {"source": "topics:", "domain": "docs"}
PROSE = "The little model reads a very long sentence about many small things that it has never seen before today.\n\n"


def recipe(**sections):
    return Recipe.model_validate({"name": "x", "pages": {"sources": [SOURCE]}, **sections})


def corpus(run, rows):
    (run / "corpus").mkdir(parents=True)
    names = ("url", "domain", "split", "text")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    pq.write_table(table, run / "corpus" / "documents.parquet")
    return run


def word(*numbers):
    return "".join(chr(97 + number % 26) for number in numbers)


def module(number):
    said = [" ".join(word(number, i, place, 7 * place + i) for place in range(6)) for i in range(9)]
    return "".join(f'def f{number}_{i}(a):\n    """Take {one} and return it."""\n' for i, one in enumerate(said))


WHOLE = [(f"{STDLIB}m{n}.py", "docs", "held_out" if n % 5 == 0 else "train", f'"""{PROSE}"""\n' + module(n)) for n in range(20)]


def test_a_whole_corpus_passes_every_check(tmp_path):
    run = corpus(tmp_path, WHOLE)
    for check in (preflight.base_continues, preflight.base_has_text, preflight.evaluation, preflight.sft):
        check(recipe(), {"corpus": run / "corpus"})


@pytest.mark.parametrize(
    ("check", "rows", "settings", "said"),
    [
        (preflight.evaluation, [("u", "docs", "train", PROSE)], {}, "none of 0 held-out documents"),
        (preflight.evaluation, WHOLE, {"evaluation": {"held_out_kb": 1}}, "fits 1 kB"),
        (preflight.sft, [("u", "docs", "train", PROSE * 99)], {"dpo": {"data": "a"}}, "dpo.data is given, but no model"),
        (preflight.base_has_text, [("u", "docs", "train", "a" * 100)], {}, "do not fill one row of base.context_length = 512"),
        (preflight.base_has_text, [("u", "docs", "held_out", PROSE * 99)], {}, "do not fill one row"),
        (preflight.base_has_text, WHOLE, {"mixture": {"weights": {"docs": 1.0, "code": 1.0}}}, "of domain 'code'"),
    ],
)
def test_what_would_end_a_late_stage_is_said(tmp_path, check, rows, settings, said):
    if settings.get("evaluation"):
        rows = [(url, domain, split, text * 3) for url, domain, split, text in rows]
    with pytest.raises(UserError) as caught:
        check(recipe(**settings), {"corpus": corpus(tmp_path, rows) / "corpus"})
    assert said in str(caught.value) and len(str(caught.value)) <= 300


def test_a_benchmark_that_cannot_be_read_is_known_before_the_first_page(tmp_path):
    (tmp_path / "a.csv").write_text('q,a\n"never closed,b\n')
    given = recipe(corpus={"benchmarks": [str(tmp_path / "a.csv")]})
    with pytest.raises(UserError, match=r"a\.csv: a damaged benchmark file"):
        Run(tmp_path / "run", given, steps.STANDARD[:3]).execute()
    assert not (tmp_path / "run" / "pages").exists()


def test_answers_that_cannot_fit_are_said_after_the_tokenizer(tmp_path, toy_tokenizer):
    run = corpus(tmp_path, WHOLE)
    toy_tokenizer.save(run / "tokenizer")
    inputs = {name: run / name for name in ("corpus", "tokenizer")}
    preflight.sft_answers_fit(recipe(sft={"max_answer_tokens": 400}), inputs)
    with pytest.raises(UserError, match=r"sft\.max_answer_tokens = 1 "):
        preflight.sft_answers_fit(recipe(sft={"max_answer_tokens": 1}), inputs)
    with pytest.raises(UserError, match=r"none of \d+ held_out questions has at most 8 tokens, as base\.context_length leaves"):
        preflight.sft_answers_fit(recipe(base={"context_length": 16}), inputs)


def test_what_evaluation_goes_without_is_said(tmp_path, capsys):
    preflight.evaluation(recipe(), {"corpus": corpus(tmp_path, [("u", "docs", "held_out", "a b c")]) / "corpus"})
    err = capsys.readouterr().err
    assert "leaves out sentence pairs: no plain sentence" in err and "leaves out multiple choice: no documented" in err


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"start_from": "m"}, "set tokenizer.folder = 'm'"),
        ({"architecture": "experts", "experts": 2, "experts_per_token": 3}, "3 of 2 experts"),
        ({"architecture": "patches"}, "tokenizer.vocabulary = 260"),
        ({"long_context": 1024}, "it is called long_context.context_length, of a step of kind long_context"),
    ],
)
def test_values_that_cannot_work_together_are_refused_with_the_recipe(base, said):
    with pytest.raises(UserError) as caught:
        resolve({"name": "x", "pages": {"sources": [SOURCE]}, "base": base}, [], "here")
    assert said in str(caught.value)


def test_a_check_comes_before_the_first_stage_after_what_it_needs(tmp_path):
    made = []

    def make(context):
        made.append(context.name)
        return {}

    def fails(recipe, inputs):
        assert (inputs["corpus"] / "stage.json").exists()
        raise UserError("dpo: will fail")

    stages = (
        Step("corpus", (), make),
        Step("tokenizer", ("corpus",), make),
        Step("dpo", ("corpus", "tokenizer"), make, checks=(("corpus", fails),)),
    )
    for expected in (["corpus"], ["corpus"]):  # also when corpus is there already
        with pytest.raises(UserError, match="dpo: will fail"):
            Run(tmp_path / "run", recipe(), stages).execute()
        assert made == expected


def test_a_folder_from_outside_that_is_not_what_the_step_reads_is_said_before_anything_runs(tmp_path, monkeypatch):
    """A whole run, one's own texts, another step's folder: these ended in a traceback, or after the steps before."""
    monkeypatch.chdir(tmp_path)
    own = corpus(tmp_path / "run", WHOLE)
    write_manifest(own / "corpus", "corpus", {}, 0.0, {})
    (own / "tokens").mkdir()
    pq.write_table(pa.table({"split": ["train"], "tokens": [3]}), own / "tokens" / "documents.parquet")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    (own / "reward").mkdir()
    (own / "reward" / "config.json").write_text('{"architectures": ["Qwen3ForSequenceClassification"]}')
    for need, folder, said in [
        ("corpus", "run", "run: no documents.parquet in it; give run/corpus"),
        ("corpus", "texts", "texts: no documents.parquet in it; .* your own documents go into ..pages.sources"),
        ("corpus", "run/tokens", "run/tokens/documents.parquet: no column 'id'; give a folder that the step corpus"),
        ("tokens", "run/corpus", "no column 'best'; give a folder that the step tokens of a run wrote"),
        ("base", "texts", "texts: neither of a run nor of a model; give the folder of a run or of a model"),
        ("sft", "run/reward", "run/reward: a reward model or classifier"),
        ("reward", "texts", "texts: no config.json, as the step reward of a run writes it"),
        ("preferences", "texts", "texts: no train.jsonl, as the step preferences"),
        ("annotations", "texts", "texts: no annotations-"),
        ("tokenizer", "texts", "texts/tokenizer.json: no such file"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            preflight.folders_hold_inputs([need], recipe(), {need: Path(folder)})
        assert len(str(caught.value)) <= 300
    found = recipe(given={"corpus": "run/tokens"}, standard=["tokenizer", "tokens"])
    with pytest.raises(UserError, match="no column 'id'"):
        Run(tmp_path / "new", found, steps.steps_of(found)).execute()
    assert not (tmp_path / "new" / "tokenizer.partial").exists()


@pytest.mark.parametrize(("name", "said"), [("hf:org/model", True), ("org/model", True), ("models/none", False)])
def test_a_model_named_as_on_hugging_face_is_told_to_be_downloaded(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    found = recipe(given={"base": name}, standard=["sft"], sft={"data": ["rows.jsonl"]})
    with pytest.raises(UserError) as run_error:
        Run(tmp_path / "new", found, steps.steps_of(found)).plan()
    with pytest.raises(UserError) as error:
        model_folder(Path(name))
    for line in (str(run_error.value), str(error.value)):
        assert "no such" in line and ("`hf download org/model` prints the folder" in line) == said and len(line) <= 300

"""Recipes as lists of steps: which run, from what, and what a change makes run again."""

from dataclasses import replace

import pytest

from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.pipeline import steps
from groundup.pipeline.recipe import resolve
from groundup.pipeline.run import Run, Step
from groundup.pipeline.step_kinds import _archives
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

PAGES = {"sources": [{"source": "topics:", "domain": "a"}]}
NAMES = [step.name for step in steps.STANDARD[:-1]]


def recipe(overrides=(), **content):
    return resolve({"name": "x", **content}, list(overrides), "here")


def names(content):
    return [step.name for step in steps.steps_of(content)]


def sources(content, name):
    step = next(step for step in steps.steps_of(content) if step.name == name)
    return {need: str(step.source(need)) for need in step.needs}


def test_the_standard_steps():
    assert names(recipe(pages=PAGES)) == [*NAMES, "report"]
    assert sources(recipe(pages=PAGES), "report") == {name: name for name in NAMES}


def test_fewer_by_name():
    some = ["pages", "annotations", "corpus", "tokenizer"]
    assert names(recipe(pages=PAGES, standard=some)) == [*some, "report"]
    with pytest.raises(UserError, match="step tokens needs tokenizer, which is neither among the steps nor given"):
        names(recipe(pages=PAGES, standard=["pages", "annotations", "corpus", "tokens"]))


def test_a_run_that_begins_with_a_corpus():
    found = recipe(given={"corpus": "/data/corpus"})
    assert names(found) == [*NAMES[3:], "report"]
    assert sources(found, "tokens") == {"corpus": "/data/corpus", "tokenizer": "tokenizer"}


def test_a_run_that_begins_with_pages(tmp_path):
    found = recipe(given={"pages": "/data/pages"})
    assert names(found) == [*NAMES[1:], "report"] and sources(found, "annotations") == {"pages": "/data/pages"}
    for name in ("10-b.warc.gz", "02-a-c.warc.gz", "02-a-c.json", "notes.warc.gz"):
        (tmp_path / name).touch()
    assert _archives(tmp_path) == [(tmp_path / "02-a-c.warc.gz", "a-c"), (tmp_path / "10-b.warc.gz", "b")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no archives of the step pages"):
        _archives(tmp_path / "empty")


def test_a_run_that_begins_with_a_model_takes_its_tokenizer():
    found = recipe(given={"base": "/data/qwen", "corpus": "/data/corpus"})
    assert "tokenizer" not in names(found) and "base" not in names(found)
    assert sources(found, "sft") == {"corpus": "/data/corpus", "tokenizer": "/data/qwen", "base": "/data/qwen"}


def test_two_of_a_kind_each_with_settings_and_inputs():
    found = recipe(
        pages=PAGES,
        base={"depth": 4},
        steps=[
            {"kind": "base", "name": "deep", "settings": {"depth": 6}},
            {"kind": "sft", "name": "sft-deep", "inputs": {"base": "deep"}, "settings": {"learning_rate": 1e-4}},
        ],
    )
    assert names(found) == [*NAMES, "deep", "sft-deep", "report"]
    assert sources(found, "sft-deep") == {"corpus": "corpus", "tokenizer": "tokenizer", "base": "deep"}
    deep, sft = steps.steps_of(found)[-3:-1]
    assert (deep.recipe.base.depth, found.base.depth, deep.recipe.base.context_length) == (6, 4, found.base.context_length)
    assert (sft.recipe.sft.learning_rate, sft.recipe.sft.epochs) == (1e-4, found.sft.epochs)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "pages is missing"),
        ({"given": {"corps": "x"}}, "corps: no standard step has this name"),
        ({"pages": PAGES, "steps": [{"kind": "pretrain", "name": "a"}]}, "no kind of step is called 'pretrain'"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "base"}]}, "a step of this name already"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "a"}, {"kind": "sft", "name": "a"}]}, "a step of this name already"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "a", "inputs": {"bas": "base"}}]}, "sft has no input 'bas'"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "a", "inputs": {"base": "deep"}}]}, "no step 'deep' comes before"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "a", "settings": {"epoch": 2}}]}, "did you mean sft.epochs?"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "../a"}]}, "steps.0.name"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "plan"}]}, "plan is what steps of another kind are called"),
        ({"pages": PAGES, "steps": [{"kind": "sft", "name": "grpo"}]}, "grpo is what steps of another kind are called"),
        ({"given": {"corpus": "/data"}, "standard": ["pages"]}, "no step can run"),
    ],
)
def test_what_cannot_be(content, said):
    with pytest.raises(UserError) as caught:
        steps.steps_of(recipe(**content))
    assert said in str(caught.value) and len(str(caught.value)) <= 300


OTHER = [
    {"kind": "tokenizer", "name": "small", "settings": {"vocabulary": 300}},
    {"kind": "tokens", "name": "of-small", "inputs": {"tokenizer": "small"}},
]


def test_tokens_and_models_are_used_with_the_tokenizer_that_they_were_made_with():
    more = [
        *OTHER,
        {"kind": "base", "name": "b", "inputs": {"tokens": "of-small"}},
        {"kind": "sft", "name": "s", "inputs": {"base": "b"}},
        {"kind": "reward", "name": "r", "inputs": {"sft": "s"}},
        {"kind": "ppo", "name": "p", "inputs": {"sft": "s", "reward": "r"}},
        {"kind": "sft", "name": "plain"},
    ]
    found = recipe(pages=PAGES, steps=more)
    assert [sources(found, name)["tokenizer"] for name in ("b", "s", "r", "p", "plain")] == [*["small"] * 4, "tokenizer"]


def test_a_model_from_a_folder_brings_its_tokenizer_and_template():
    more = [
        {"kind": "sft", "name": "s", "inputs": {"base": "/data/qwen"}},
        {"kind": "dpo", "name": "d", "inputs": {"sft": "s"}},
        {"kind": "sft", "name": "plain"},
    ]
    found = recipe(pages=PAGES, steps=more)
    assert [sources(found, name)["tokenizer"] for name in ("s", "d", "plain")] == ["/data/qwen", "/data/qwen", "tokenizer"]
    by_name = {step.name: step for step in steps.steps_of(found)}
    assert [by_name[name].recipe.continued for name in ("s", "d", "plain")] == ["/data/qwen", "/data/qwen", ""]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([{"kind": "sft", "name": "a", "inputs": {"base": "tokens"}}], "its input base cannot be 'tokens', a step of kind t"),
        ([{"kind": "sft", "name": "a", "inputs": {"base": "reward"}}], "it is of base, sft, dpo, ppo, grpo, long_context"),
        ([{"kind": "benchmarks", "name": "a", "inputs": {"model": "corpus"}}], "its input model cannot be 'corpus'"),
        ([{"kind": "preferences", "name": "a", "inputs": {"sft": "dpo"}}], "it is of sft"),
        ([{"kind": "dpo", "name": "a", "inputs": {"preferences": "reward"}}], "cannot be 'reward', a step of kind reward"),
        ([*OTHER, {"kind": "base", "name": "a", "inputs": {"tokenizer": "small"}}], "tokens is of the tokenizer tokenizer, not"),
        ([*OTHER, {"kind": "base", "name": "a", "inputs": {"tokens": "of-small", "tokenizer": "tokenizer"}}], "not of tokenizer"),
        (
            [*OTHER, {"kind": "base", "name": "b", "inputs": {"tokens": "of-small"}},
             {"kind": "evaluation", "name": "e", "inputs": {"base": "b"}}],
            "steps 4 (e): its input tokens is of the tokenizer tokenizer, not of small: add inputs.tokens or",
        ),
    ],
)  # fmt: skip
def test_inputs_of_another_kind_or_another_tokenizer(more, said):
    with pytest.raises(UserError) as caught:
        steps.steps_of(recipe(pages=PAGES, steps=more))
    assert said in str(caught.value) and len(str(caught.value)) <= 300


def test_given_tokens_need_their_tokenizer():
    given = {"corpus": "/data/corpus", "tokens": "/data/tokens"}
    with pytest.raises(UserError, match=r"given\.tokens: say which tokenizer made them: add given\.tokenizer"):
        steps.steps_of(recipe(given=given))
    assert sources(recipe(given={**given, "tokenizer": "/data/t"}), "base")["tokenizer"] == "/data/t"
    assert sources(recipe(given={**given, "base": "/data/qwen"}), "sft")["tokenizer"] == "/data/qwen"


def test_a_run_that_begins_with_tokens_needs_no_corpus():
    given = {"tokens": "/data/tokens", "tokenizer": "/data/t"}
    found = recipe(["sft.data=a.jsonl"], given=given, steps=[{"kind": "base", "name": "deep", "settings": {"depth": 6}}])
    assert names(found) == ["base", "sft", "preferences", "reward", "dpo", "ppo", "deep", "report"]
    assert sources(found, "base") == sources(found, "deep") == {"tokenizer": "/data/t", "tokens": "/data/tokens"}


def test_a_model_from_elsewhere_with_the_tokenizer_of_another_run(tmp_path):
    for name, size in (("a", 280), ("b", 290), ("c", 290)):
        tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(["the cat sat on the mat and looked " * 9]), size))
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
    given = {"corpus": str(tmp_path), "base": str(tmp_path / "b")}

    def checked(tokenizer):
        found = recipe(given={**given, "tokenizer": str(tmp_path / tokenizer)}, standard=["sft"])
        [step] = [one for one in steps.steps_of(found) if one.name == "sft"]
        need, check = step.checks[-1]
        assert need == "tokenizer"
        check(found, step.inputs(tmp_path))

    with pytest.raises(UserError, match=r"b: its tokenizer is not the one in .*a; give the model's own"):
        checked("a")
    checked("c")


def kinds():
    """Steps that write what they were given."""

    def make(context):
        text = "".join(sorted((folder / "made").read_text() for folder in context.inputs.values()))
        write_text(context.work / "made", f"{text}{context.name} {context.recipe.base.depth} {context.recipe.sft.epochs}\n")
        return {}

    kinds = (Step("corpus", (), make), Step("base", ("corpus",), make), Step("sft", ("base",), make), Step("report", (), make))
    return {step.name: step for step in kinds}


def test_a_change_runs_again_only_its_branch(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "STANDARD", tuple(kinds().values()))
    monkeypatch.setattr(steps, "KINDS", {name: step for name, step in kinds().items() if name != "report"})

    def states(depth, epochs):
        more = [
            {"kind": "base", "name": "deep", "settings": {"depth": depth}},
            {"kind": "sft", "name": "long", "inputs": {"base": "deep"}, "settings": {"epochs": epochs}},
        ]
        found = recipe(pages=PAGES, steps=more)
        run = Run(tmp_path, found, steps.steps_of(found))
        plan = {one.step.name: one.state for one in run.plan()}
        run.execute()
        return plan

    assert set(states(6, 2).values()) == {"make"}
    assert set(states(6, 2).values()) == {"done"}
    done = {"corpus": "done", "base": "done", "sft": "done"}
    assert states(8, 2) == {**done, "deep": "make", "long": "check", "report": "check"}
    assert states(8, 3) == {**done, "deep": "done", "long": "make", "report": "check"}
    assert (tmp_path / "long" / "made").read_text() == "corpus 4 1\ndeep 8 1\nlong 4 3\n"


def test_a_folder_given_counts_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(steps.preflight, "folders_hold_inputs", lambda needs, recipe, inputs: None)  # they hold a toy's files
    monkeypatch.setattr(steps, "STANDARD", tuple(kinds().values()))
    monkeypatch.setattr(steps, "KINDS", {name: step for name, step in kinds().items() if name != "report"})
    given = tmp_path / "given"
    given.mkdir()
    write_text(given / "made", "mine\n")
    found = recipe(given={"corpus": str(given)})
    run = Run(tmp_path / "run", found, steps.steps_of(found))
    run.execute()
    assert (tmp_path / "run" / "base" / "made").read_text() == "mine\nbase 4 1\n"
    assert {one.state for one in run.plan()} == {"done"}
    write_text(given / "made", "mine, changed\n")
    assert next(one for one in run.plan() if one.step.name == "base").state == "make"
    by_hand = Run(tmp_path / "run", found, steps.steps_of(found))
    base = next(step for step in by_hand.steps if step.name == "base")

    def changes(context):
        write_text(given / "made", "mine, changed while it was read\n")
        return base.make(context)

    with pytest.raises(UserError, match="given changed while step base read it; run the same command again"):
        replace(by_hand, steps=tuple(replace(step, make=changes) if step is base else step for step in by_hand.steps)).execute()
    by_hand.execute()
    assert "mine, changed while it was read" in (tmp_path / "run" / "base" / "made").read_text()
    missing = recipe(given={"corpus": str(tmp_path / "none")})
    with pytest.raises(UserError, match="no such file, which step base needs"):
        Run(tmp_path / "other", missing, steps.steps_of(missing)).plan()


def test_own_data_take_the_place_of_a_corpus_and_of_preferences():
    own = ["sft.data=a.jsonl", "reward.data=b.jsonl", "dpo.data=b.jsonl"]
    assert names(recipe(own, pages=PAGES)) == [*(name for name in NAMES if name != "preferences"), "report"]
    assert names(recipe(own[:2], pages=PAGES)) == [*NAMES, "report"]
    found = recipe(own, given={"base": "/data/qwen"})
    assert names(found) == ["sft", "reward", "dpo", "ppo", "report"]
    assert sources(found, "sft") == {"tokenizer": "/data/qwen", "base": "/data/qwen"}
    assert sources(found, "dpo") == {"tokenizer": "/data/qwen", "sft": "sft"}
    assert names(recipe(own[2:], given={"sft": "/data/chat"}))[-2:] == ["ppo", "report"]
    assert sources(recipe(own[2:], given={"sft": "/data/chat"}), "dpo") == {"tokenizer": "/data/chat", "sft": "/data/chat"}


def test_a_folder_given_by_a_relative_path_lies_where_the_program_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr(steps.preflight, "folders_hold_inputs", lambda needs, recipe, inputs: None)  # they hold a toy's files
    monkeypatch.setattr(steps, "STANDARD", tuple(kinds().values()))
    monkeypatch.setattr(steps, "KINDS", {name: step for name, step in kinds().items() if name != "report"})
    (tmp_path / "given").mkdir()
    write_text(tmp_path / "given" / "made", "mine\n")
    monkeypatch.chdir(tmp_path)
    more = [{"kind": "base", "name": "own", "inputs": {"corpus": "./given"}}]
    found = recipe(given={"corpus": "given"}, steps=more)
    Run(tmp_path / "run", found, steps.steps_of(found)).execute()
    assert (tmp_path / "run" / "base" / "made").read_text() == "mine\nbase 4 1\n"
    assert (tmp_path / "run" / "own" / "made").read_text() == "mine\nown 4 1\n"

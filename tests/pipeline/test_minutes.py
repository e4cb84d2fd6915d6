"""A budget of minutes: what is measured once, written down and kept to."""

import json
import shutil
import sys
import time
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.seals import read_manifest
from groundup.data.config import MixtureConfig
from groundup.pipeline import minutes, recipe, step_times, steps
from groundup.pipeline.step_times import LaterStep, Questions, Speeds, Work, total_seconds, work_of
from groundup.scaling import time_budget
from groundup.scaling.time_budget import Candidate, candidate_result
from groundup.training import rate
from groundup.training.config import PretrainingConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

RATES = {1: 40.0, 2: 30.0, 3: 0.01}  # tokens a second that each depth is said to train at
MADE = ("base/model.safetensors", "base/training/metrics.jsonl", "plan/plan.json")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """What comes before the base model."""
    folder = tmp_path_factory.mktemp("before")
    (folder / "corpus").mkdir()
    others = {"url": "u", "kind": "text", "best": False, "split": "train"}
    rows = [{"id": str(number), **others, **row} for number, row in enumerate(DOCUMENTS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus" / "documents.parquet")
    tokenizer().save(folder / "tokenizer")
    write_tokens(folder / "tokens", DOCUMENTS, tokenizer())
    return folder


@pytest.fixture
def measured(monkeypatch):
    """The depths that were measured, at rates that are given in place of this machine's."""
    depths = []

    def given_rate(tokens, tokenizer, settings, mixture, device, label):
        depths.append(settings.depth)
        return RATES[settings.depth]

    monkeypatch.setattr(rate, "tokens_per_second", given_rate)
    return depths


def toy(before, **base):
    places = {name: str(before / name) for name in ("corpus", "tokenizer", "tokens")}
    base = {"minutes": 1, "context_length": 16, "batch_tokens": 64, **base}
    content = {"name": "toy", "threads": 1, "standard": ["base"], "given": places, "base": base}
    return recipe.resolve(content, [], "toy.toml")


def made(one, folder):
    steps.execute(one, folder, steps.steps_of(one)[:-1])
    return [(folder / name).read_bytes() for name in MADE]


def test_depth_and_tokens_follow_from_the_rates(before, measured, tmp_path):
    made(toy(before), tmp_path)
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert measured in ([1, 2], [1, 2, 3])  # whichever is the first that is worse
    best = min((one for one in plan["candidates"] if one["tokens"]), key=lambda one: one["loss"])
    assert plan["chosen"]["depth"] == best["depth"] and plan["chosen"]["tokens"] == best["tokens"]
    assert 0.5 * 57 * RATES[best["depth"]] < best["tokens"] < 57 * RATES[best["depth"]]
    results = read_manifest(tmp_path / "base")["results"]
    assert results["tokens"] == best["tokens"] // 64 * 64 and results["planned"]["loss"] > 0
    assert {"machine", "made", "device", "reasons", "law", "expected"} <= set(plan)
    assert plan["law"]["file"] == "shipped_law.json" and any("shipped_law.json of 20" in one for one in plan["reasons"])


def test_time_for_more_than_there_is_makes_no_model_larger_than_its_text(before, measured, monkeypatch, tmp_path):
    for depth in RATES:
        monkeypatch.setitem(RATES, depth, 1e6)
    made(toy(before), tmp_path)
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert measured == [1, 2] and plan["chosen"]["depth"] == 1
    assert any("all that the mixture gives" in reason for reason in plan["reasons"])


def test_a_second_run_and_another_clock_measure_nothing_again(before, measured, monkeypatch, replace_time, tmp_path):
    first = made(toy(before), tmp_path)
    measured.clear()
    replace_time(minutes, monotonic=lambda: 7 * time.monotonic() + 1e6)
    monkeypatch.setattr(rate, "tokens_per_second", None)
    assert made(toy(before), tmp_path) == first
    shutil.rmtree(tmp_path / "base")
    assert made(toy(before), tmp_path) == first and not measured


@pytest.mark.parametrize("kill", [1, 9])
def test_a_killed_run_ends_with_the_same_bytes(before, measured, monkeypatch, tmp_path, kill):
    from groundup.training.optimizer import Optimizer

    whole = made(toy(before), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "plan", tmp_path / "killed" / "plan")
    real, count = Optimizer.step, []

    def dies(self, multiplier):
        count.append(multiplier)
        if len(count) == kill:
            raise KeyboardInterrupt
        real(self, multiplier)

    monkeypatch.setattr(Optimizer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        made(toy(before), tmp_path / "killed")
    monkeypatch.setattr(Optimizer, "step", real)
    monkeypatch.setitem(RATES, 1, 1000.0)
    assert made(toy(before), tmp_path / "killed") == whole


def test_what_follows_from_a_plan_are_its_sizes_alone(before, measured, tmp_path):
    made(toy(before), tmp_path)
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for change, same in ({"made": "later"}, True), ({"chosen": {**plan["chosen"], "tokens": 640}}, False):
        (other / "plan.json").write_text(json.dumps(plan | change))
        first = minutes.digest_of_chosen(tmp_path / "plan" / "plan.json")
        assert (minutes.digest_of_chosen(other / "plan.json") == first) is same
    assert minutes.digest_of_chosen(other / "stage.json") is None


def test_more_minutes_plan_again(before, measured, tmp_path):
    made(toy(before), tmp_path)
    few = read_manifest(tmp_path / "base")["results"]["tokens"]
    made(toy(before, minutes=2), tmp_path)
    assert read_manifest(tmp_path / "base")["results"]["tokens"] > 1.5 * few


@pytest.mark.parametrize(
    "speed, available, length",
    [(1e6, 1e9, 1_048_576), (1e6, 5e5, 262_144), (1e6, 1e5, 262_144), (4e4, 1e9, 262_144), (1e4, 1e9, 0)],
)
def test_the_longest_pilot_that_time_and_text_allow(speed, available, length):
    assert minutes._pilot_tokens(5, speed, available) == length


def test_a_pilot_says_the_loss_to_expect(before, measured, monkeypatch, tmp_path):
    monkeypatch.setattr(time_budget, "PILOTS", {64: 32})
    made(toy(before), tmp_path)
    planned = read_manifest(tmp_path / "base")["results"]["planned"]
    assert planned["expected"]["low"] < planned["expected"]["value"] < planned["expected"]["high"]
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["factor"] != 1 and plan["expected"]["loss"] == planned["expected"]


def test_what_does_not_fit_is_one_line(before, measured, monkeypatch, tmp_path):
    for depth in RATES:
        monkeypatch.setitem(RATES, depth, 0.1)
    with pytest.raises(UserError, match="too short for this run here") as raised:
        made(toy(before), tmp_path)
    assert len(str(raised.value)) <= 300 and "\n" not in str(raised.value)
    assert str(raised.value).startswith("base.minutes = 1")


@pytest.mark.parametrize(
    "base, said",
    [
        ({"minutes": 0.5}, "under a minute is too short"),
        ({"minutes": 0.999}, "under a minute is too short"),
        ({"minutes": -1}, "base.minutes = -1"),
        ({"minutes": float("nan")}, "base.minutes = nan"),
        ({"minutes": "15"}, "base.minutes = '15'"),
        ({"minutes": True}, "base.minutes = True"),
        ({"minutes": 1e30}, "less than or equal to 10000000"),
        ({"minutes": 5, "depth": 4}, "depth and tokens follow from the minutes"),
        ({"minutes": 5, "tokens": 1000}, "depth and tokens follow from the minutes"),
        ({"minutes": 5, "tokens": 1000, "depth": 2}, "depth and tokens follow from the minutes"),
    ],
)
def test_minutes_that_cannot_be_are_one_line(before, base, said):
    with pytest.raises(UserError, match=said) as raised:
        toy(before, **base)
    assert len(str(raised.value)) <= 300 and "\n" not in str(raised.value)


def test_minutes_of_a_model_that_is_there_or_of_none_are_one_line(before, tmp_path):
    for content, said in (
        ({"given": {"base": "/models/theirs"}}, "has its size already"),
        ({"standard": ["pages", "corpus"]}, "no base model"),
    ):
        with pytest.raises(UserError, match=said):
            recipe.resolve({"name": "a", "pages": {"sources": [{"source": "topics:", "domain": "a"}]}, "base": {"minutes": 5},
                            **content}, [], "a")  # fmt: skip
    added = [{"kind": "base", "name": "deep", "settings": {"depth": 6}}]
    one = recipe.resolve({**toy(before).model_dump(exclude_unset=True), "steps": added}, [], "a") 
    with pytest.raises(UserError, match="one base model"):
        steps.steps_of(one)


def test_minutes_0_are_none(before):
    one = toy(before, minutes=0, depth=2)
    assert [step.name for step in steps.steps_of(one)] == ["base", "report"] and one.base.depth == 2


def test_on_the_command_line_they_take_the_place_of_sizes(tiny_recipe):
    loaded = recipe.load(tiny_recipe, ["base.context_length=128"], 2.0)
    assert loaded.base.minutes == 2 and not loaded.base.tokens and loaded.base.context_length == 128
    with pytest.raises(UserError, match=r"base.minutes = 2 and base.depth = 3"):
        recipe.load(tiny_recipe, ["base.depth=3"], 2.0)
    assert recipe.load(tiny_recipe).base.tokens == 150_000


@pytest.mark.parametrize("given_minutes", ["0", "0.5", "-3", "nan", "inf", "soon"])
def test_a_budget_under_a_minute_is_one_line(groundup_here, given_minutes):
    outcome = groundup_here("run", "tiny", "--minutes", given_minutes)
    lines = outcome.stderr.strip().splitlines()
    assert outcome.returncode == 2 and len(lines) == 1 and len(lines[0]) <= 300 and "minutes" in lines[0]


def test_the_shipped_laptop_recipe_takes_15():
    assert recipe.load(Path("laptop")).base.minutes == 15


def test_a_dry_run_shows_the_plan(measured, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rate, "tokens_per_second", lambda *arguments: 1e5 / arguments[2].depth**3)
    one = recipe.load(Path("laptop"))
    found = steps.dry(one, tmp_path / "run", steps.steps_of(one))
    err = capsys.readouterr().err
    assert "plan: 15 minutes:" in err and "plan: measured here: depth 1:" in err and "for now: random text" in err
    assert found["derived"]["base"]["tokens"] > 1_000_000 and found["plan"]["plan"] == "make"
    assert "\ndepth" not in err and not (tmp_path / "run").exists()


def test_the_rate_is_that_of_real_steps(before, monkeypatch):
    monkeypatch.setattr(rate, "SECONDS", 0.0)
    settings = PretrainingConfig(depth=1, context_length=16, batch_tokens=64, tokens=640)
    speed = rate.tokens_per_second(tokenizer(), before / "tokens", settings, MixtureConfig(), choose(1), "rate")
    assert 1 < speed < 1e9


candidates = st.builds(
    Candidate, depth=st.just(1), parameters=st.integers(10**4, 10**10), flop=st.floats(1e4, 1e12),
    tokens_per_second=st.floats(1, 1e8), after=st.floats(0, 1e4),
)  # fmt: skip


# Of a GPU, 34 s: too few to compile, and enough to reach the FLOP from which it does. Then text that ends before these FLOP.
@example(Candidate(1, 10_000, 20_824.0, 1e8, 299.0), 333.0, 5e11, 2, 5e13)
@example(Candidate(1, 10_000, 227_000.0, 1e6, 0.0), 200.0, 2.1e8, 2, 5e13)
@given(candidates, st.floats(0, 1e6), st.floats(1, 1e12), st.integers(0, 10**6), st.sampled_from([5e13, float("inf")]))
def test_no_candidate_takes_longer_than_it_has(one, seconds, available, besides, compiled_from):
    found = candidate_result(one, seconds, available, besides, compiled_from)
    assert 0 <= found.tokens <= available
    if found.tokens:
        assert found.seconds + one.after <= seconds * (1 + 1e-6) + 1e-3 and found.loss > 0
    more = candidate_result(one, 2 * seconds, available, besides, compiled_from)
    assert more.tokens >= found.tokens


ASKED = Questions(1000, 500, 100, 50.0, 20.0)


def test_later_steps_are_counted():
    one = recipe.load(Path("laptop"))

    def work(*kinds, asked=ASKED):
        return work_of([LaterStep(kind, kind, one) for kind in kinds], asked, 10**6, 3 * 10**6)

    sft = work("sft")
    assert (sft.rows, sft.answers) == (1000, 2 * 100)
    everything = work("evaluation", "sft", "preferences", "reward", "dpo", "ppo", "report")
    assert not everything.unknown
    for name in ("scored", "rows", "answers"):
        assert getattr(everything, name) > sum(getattr(work(kind), name) for kind in ("sft", "ppo")) > 0
    assert work("benchmarks").unknown == ["benchmarks"]
    assert work("sft", "ppo", asked=Questions()) == Work(0.0, 0.0, 0.0, 0.0, step_times.REPORT_SECONDS, [])


@given(st.tuples(*[st.floats(0, 1e6)] * 5), st.tuples(*[st.floats(1e-9, 1e-3)] * 4), st.floats(1, 4))
def test_later_steps_take_longer_where_a_machine_is_slower(counts, seconds, slower):
    work, speeds = Work(*counts, []), Speeds(*seconds)
    assert total_seconds(work, speeds) >= work.seconds
    slow = total_seconds(work, Speeds(*(slower * one for one in speeds))) - work.seconds
    assert slow == pytest.approx(slower * (total_seconds(work, speeds) - work.seconds), rel=1e-6, abs=1e-6)


def test_later_steps_are_measured_on_real_rows(before, monkeypatch, replace_time):
    """Every speed is of the work itself: on a clock that counts steps, answers and scores, not on this machine's."""
    from groundup.model import likelihood
    from groundup.posttraining import reference_answers
    from groundup.training.optimizer import Optimizer

    clock = {"now": 0.0}
    replace_time(step_times, perf_counter=lambda: clock["now"])
    for owner, name, cost in ((likelihood, "score", 3.0), (reference_answers, "answer", 5.0), (Optimizer, "step", 7.0)):
        real = getattr(owner, name)

        def timed(*arguments, real=real, cost=cost, **more):
            clock["now"] += cost
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, timed)
    monkeypatch.setattr(step_times, "TIMED_ANSWERS", 4)
    said = [{"role": "user", "content": "the path"}, {"role": "assistant", "content": "a file"}]
    rows = tuple({"messages": said} for _ in range(3))
    one, asked = toy(before, context_length=64), Questions(3, 3, 3, 9.0, 2.0, rows)
    held_out = minutes._held_out(before / "tokens")
    found = step_times.measure_speeds(one, 1, 100.0, tokenizer(), choose(1), held_out, asked)
    assert found.trained == 0.01 and found.answer == 5.0 / 4 and found.row == 7.0 / one.sft.batch_examples
    assert found.scored == pytest.approx(3.0 / sum(map(len, held_out)))
    guessed = step_times.guess_speeds(100.0, asked)
    assert step_times.measure_speeds(one, 1, 100.0, tokenizer(), choose(1), [], Questions(3, 3, 3, 9.0, 2.0)) == guessed


def test_a_rate_is_measured_at_the_batch_that_it_is_for(before, measured, monkeypatch, tmp_path):
    """A thousand tokens a second are 57,000 tokens, of which steps are larger than the first guess has them."""
    batches = []

    def speed(tokens, tokenizer, settings, mixture, device, label):
        batch = minutes._batch_tokens(toy(before, batch_tokens=0), settings.depth, settings.tokens, 1e12)
        batches.append((settings.depth, batch))
        return {1: 1e6, 2: 1e-3}[settings.depth]

    monkeypatch.setattr(rate, "tokens_per_second", speed)
    monkeypatch.setattr(minutes, "with_planned_sizes", lambda one, folder: one)
    one = toy(before, batch_tokens=0)
    found = minutes.decide(
        one, before / "tokens", tokenizer(), choose(1), {}, Work(0, 0, 0, 0, 0, []), Questions(), time.monotonic(),
        full_text=False,
    )  # fmt: skip
    assert [depth for depth, _ in batches] == [1, 1, 2] and batches[1][1] > batches[0][1]
    assert found["chosen"]["batch_tokens"] == batches[1][1]


def test_the_report_has_prediction_and_outcome_side_by_side(before, measured, monkeypatch, tmp_path):
    monkeypatch.setattr(time_budget, "PILOTS", {64: 32})
    one = toy(before)
    result = steps.run(one, tmp_path)
    page = Path(result["report"]).read_text(encoding="utf-8")
    planned = read_manifest(tmp_path / "base")["results"]["planned"]
    assert "Prediction and outcome" in page and "shipped_law.json" in page
    assert f"{planned['loss']:.3f}" in page and f"{planned['expected']['value']:.3f}" in page
    assert result["figures"]["held_out_loss"] == planned["loss"] and result["figures"]["depth"] in RATES
    again = tomllib.loads((tmp_path / "report" / "recipe.toml").read_text())["base"]
    assert again["minutes"] == 0 and again["tokens"] == result["figures"]["tokens"] and again["depth"] in RATES

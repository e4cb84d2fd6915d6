import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import groundup.pipeline.run
from groundup.core.errors import UserError
from groundup.core.machine import machine
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Run, Step, open_stage
from groundup.pipeline.step_kinds import STANDARD

PAGES = {"sources": [{"source": "topics:", "domain": "reference"}]}


def recipe(seed=0, **sections):
    return Recipe.model_validate({"name": "toy", "seed": seed, "pages": PAGES, **sections})


class ToyPipeline:
    """Four toy stages: tokenizer -> base -> sft, and dpo on the tokenizer only.

    The tokenizer writes its vocabulary in hundreds, so that 400 and 440 give the same artifact.
    """

    def __init__(self, folder):
        self.folder = folder
        self.made = []
        self.failing = set()
        self.stages = (
            Step("tokenizer", (), self.tokenizer),
            Step("base", ("tokenizer",), self.base, ("base", "mixture")),
            Step("sft", ("base",), self.sft),
            Step("dpo", ("tokenizer",), self.dpo),
        )

    def begin(self, context):
        self.made.append(context.name)
        with (context.work / "attempts.log").open("a") as log:
            log.write("begun\n")
        if context.name in self.failing:
            raise RuntimeError(f"{context.name} fails")
        (context.work / "attempts.log").unlink()

    def tokenizer(self, context):
        self.begin(context)
        (context.work / "size.txt").write_text(str(context.recipe.tokenizer.vocabulary // 100))
        return {"vocabulary": context.recipe.tokenizer.vocabulary}

    def base(self, context):
        self.begin(context)
        size = (context.inputs["tokenizer"] / "size.txt").read_text()
        (context.work / "deep").mkdir(exist_ok=True)
        (context.work / "deep" / "model.txt").write_text(f"{size} x {context.recipe.base.depth}")
        return {"loss": 1 / context.recipe.base.depth}

    def sft(self, context):
        self.begin(context)
        model = (context.inputs["base"] / "deep" / "model.txt").read_text()
        (context.work / "model.txt").write_text(model + " tuned")
        return {}

    def dpo(self, context):
        self.begin(context)
        size = (context.inputs["tokenizer"] / "size.txt").read_text()
        (context.work / "model.txt").write_text(f"{size} {context.recipe.dpo.beta}")
        return {}

    def run(self, **changes):
        return Run(self.folder, recipe(**changes), self.stages)

    def execute_all(self, **changes):
        """Names of the stages that were made."""
        self.made = []
        self.run(**changes).execute()
        return self.made

    def plan(self, **changes):
        return {step.step.name: (step.state, step.reason) for step in self.run(**changes).plan()}

    def times(self):
        files = (path for path in self.folder.rglob("*") if path.name not in (".lock", "log.txt"))
        return {path: path.stat().st_mtime_ns for path in files}

    def artifacts(self):
        return {
            path.relative_to(self.folder).as_posix(): path.read_text()
            for path in sorted(self.folder.rglob("*.txt"))
            if path.is_file() and path.name != "log.txt"
        }


@pytest.fixture
def pipeline(tmp_path):
    return ToyPipeline(tmp_path / "run")


ALL = ["tokenizer", "base", "sft", "dpo"]


def test_what_is_done_is_not_done_again(pipeline):
    assert pipeline.execute_all() == ALL
    before = pipeline.times()
    assert pipeline.execute_all() == []
    assert before == pipeline.times()
    assert {state for state, _ in pipeline.plan().values()} == {"done"}


def test_a_finished_run_in_a_read_only_folder_is_returned_without_writing(pipeline, monkeypatch):
    """As an archive, a mounted snapshot or another user's folder is: the lock ended it by "permission denied"."""
    manifests = pipeline.run().execute()
    (pipeline.folder / ".lock").unlink()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != pipeline.folder and access(path, mode))
    before = pipeline.times()
    assert pipeline.run().execute() == manifests and before == pipeline.times() and not (pipeline.folder / ".lock").exists()
    with pytest.raises(UserError, match=r"may not be written, and step base is to be made \(base.depth: .* another run folder"):
        pipeline.execute_all(base={"depth": 3})
    assert before == pipeline.times() and not (pipeline.folder / ".lock").exists()


def test_the_manifest_tells_everything(pipeline):
    manifests = pipeline.run(base={"depth": 3}).execute()
    stored = json.loads((pipeline.folder / "base" / "stage.json").read_text())
    assert stored == manifests["base"]
    assert stored["stage"] == "base" and stored["results"] == {"loss": 1 / 3}
    assert stored["key"]["recipe"]["base"]["depth"] == 3 and stored["key"]["recipe"].keys() == {
        "seed",
        "base",
        "mixture",
    }
    assert stored["key"]["inputs"] == {"tokenizer": manifests["tokenizer"]["digest"]}
    assert stored["outputs"].keys() == {"deep/model.txt"}
    assert {"groundup", "python", "torch", "numpy"} <= stored["versions"].keys()
    assert stored["machine"] == machine()
    assert sorted(path.name for path in (pipeline.folder / "base").iterdir()) == ["deep", "stage.json"]
    assert open_stage(pipeline.folder, "base") == pipeline.folder / "base"


def test_a_change_redoes_only_what_depends_on_it(pipeline):
    pipeline.execute_all()
    assert pipeline.execute_all(base={"depth": 5}) == ["base", "sft"]
    assert (pipeline.folder / "sft" / "model.txt").read_text() == "40 x 5 tuned"
    assert pipeline.execute_all(base={"depth": 5}, dpo={"beta": 0.3}) == ["dpo"]
    assert pipeline.execute_all(base={"depth": 5}, mixture={"max_repeats": 2}) == ["base", "dpo"]  # same model: sft is kept
    assert pipeline.execute_all(base={"depth": 5}, mixture={"max_repeats": 2}, ppo={"clip": 0.1}) == []
    assert pipeline.execute_all(seed=1) == ALL


def test_the_same_result_stops_the_chain(pipeline):
    pipeline.execute_all(tokenizer={"vocabulary": 400})
    assert pipeline.execute_all(tokenizer={"vocabulary": 440}) == ["tokenizer"]
    assert pipeline.execute_all(tokenizer={"vocabulary": 500}) == ALL


def test_the_plan_knows_a_step_that_takes_fewer_inputs_than_before(pipeline):
    """As the report of a run of which `standard` now lists less: the plan called it done, and the run made it."""
    pipeline.stages = (*pipeline.stages, Step("report", ("base", "sft"), pipeline.tokenizer))
    pipeline.execute_all()
    pipeline.stages = (*pipeline.stages[:2], Step("report", ("base",), pipeline.tokenizer))
    assert pipeline.plan()["report"] == ("make", "made before with sft")
    pipeline.execute_all()
    assert pipeline.plan()["report"][0] == "done"


@pytest.mark.parametrize("machine", [{"threads": 7}, {"memory_mb": 9}, {"ray": "local"}, {"name": "x"}], ids=str)
def test_settings_of_the_machine_do_not_redo_anything(pipeline, machine):
    pipeline.execute_all()
    changed = recipe().model_copy(update=machine)
    assert [one.state for one in Run(pipeline.folder, changed, pipeline.stages).plan()] == ["done"] * 4


def test_no_setting_of_the_machine_is_in_the_key_of_a_step():
    """Of all kinds of steps, also those whose sections are listed one by one."""
    outside = {"name", "threads", "memory_mb", "ray", "standard", "steps", "given"}
    names = {"seed", *Recipe.model_fields} - outside
    for step in STANDARD:
        kept = {"seed", *(step.sections or (step.name,))}
        assert kept <= names, step.name


def test_the_plan_gives_reasons_and_writes_nothing(pipeline):
    assert pipeline.plan() == dict.fromkeys(ALL, ("make", "not made yet"))
    assert not pipeline.folder.exists()
    pipeline.execute_all()
    plan = pipeline.plan(tokenizer={"vocabulary": 500}, dpo={"beta": 0.3, "epochs": 2})
    assert plan["tokenizer"] == ("make", "tokenizer.vocabulary: 4096 -> 500")
    assert plan["base"] == ("check", "made again if tokenizer comes out different")
    assert plan["sft"] == ("check", "made again if base comes out different")
    assert plan["dpo"] == ("make", "dpo.beta: 0.1 -> 0.3; dpo.epochs: 1 -> 2")
    assert pipeline.plan(base={"start_from": "Büro/会"})["base"] == ("make", 'base.start_from: "" -> "Büro/会"')
    pipeline.failing = {"base"}
    with pytest.raises(RuntimeError):
        pipeline.execute_all(tokenizer={"vocabulary": 500})
    plan = pipeline.plan(tokenizer={"vocabulary": 500})
    assert plan["tokenizer"][0] == "done"
    assert plan["base"] == ("make", "tokenizer changed") and plan["dpo"] == ("make", "tokenizer changed")


changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 1),
        "tokenizer": st.fixed_dictionaries({"vocabulary": st.sampled_from([400, 440, 500])}),
        "base": st.fixed_dictionaries({"depth": st.integers(1, 2)}),
        "dpo": st.fixed_dictionaries({"beta": st.sampled_from([0.1, 0.2])}),
    },
)


@settings(max_examples=25)
@given(st.lists(st.tuples(changes, st.sampled_from(["", *ALL])), min_size=2, max_size=4))
def test_the_plan_is_what_happens_and_the_result_is_that_of_a_fresh_run(tmp_path_factory, history):
    pipeline = ToyPipeline(tmp_path_factory.mktemp("history") / "run")
    for change, failing in history:
        plan, pipeline.failing = pipeline.plan(**change), {failing}
        try:
            pipeline.execute_all(**change)
        except RuntimeError:
            # Everything before the failing stage was made as planned, the stage itself is not there as made.
            assert pipeline.made[-1] == failing
            pipeline.failing = set()
            pipeline.execute_all(**change)
        else:
            for name, (state, _) in plan.items():
                assert state == "check" or (state == "make") == (name in pipeline.made)
    fresh = ToyPipeline(tmp_path_factory.mktemp("fresh") / "run")
    fresh.execute_all(**history[-1][0])
    assert pipeline.artifacts() == fresh.artifacts()


def test_an_exception_leaves_no_finished_folder(pipeline):
    pipeline.failing = {"base"}
    with pytest.raises(RuntimeError, match="base fails"):
        pipeline.execute_all()
    assert pipeline.made == ["tokenizer", "base"]
    assert (pipeline.folder / "tokenizer" / "stage.json").exists()
    assert not (pipeline.folder / "base").exists() and not (pipeline.folder / "sft").exists()
    with pytest.raises(UserError, match="no finished stage 'base'"):
        open_stage(pipeline.folder, "base")
    assert pipeline.plan()["base"] == ("make", "resumes where it was interrupted")


def test_partial_work_is_kept_for_the_same_inputs_and_wiped_for_others(pipeline):
    pipeline.failing = {"base"}
    log = pipeline.folder / "base.partial" / "attempts.log"
    for attempts in (1, 2):
        with pytest.raises(RuntimeError):
            pipeline.execute_all()
        assert log.read_text() == "begun\n" * attempts
    with pytest.raises(RuntimeError):
        pipeline.execute_all(base={"depth": 9})
    assert log.read_text() == "begun\n"
    with pytest.raises(RuntimeError):
        pipeline.execute_all(base={"depth": 9}, tokenizer={"vocabulary": 500})  # other inputs, same section
    assert log.read_text() == "begun\n"
    (log.parent / "key.json").write_text('{"recipe": ')
    with pytest.raises(RuntimeError):
        pipeline.execute_all(base={"depth": 9}, tokenizer={"vocabulary": 500})
    assert log.read_text() == "begun\n"
    pipeline.failing = set()
    assert pipeline.execute_all(base={"depth": 9}, tokenizer={"vocabulary": 500}) == ["base", "sft", "dpo"]
    assert not list(pipeline.folder.glob("*.partial"))


def test_the_old_artifact_stays_until_the_new_one_is_whole(pipeline):
    pipeline.execute_all()
    pipeline.failing = {"base"}
    with pytest.raises(RuntimeError):
        pipeline.execute_all(base={"depth": 5})
    assert (pipeline.folder / "base" / "deep" / "model.txt").read_text() == "40 x 4"
    assert pipeline.execute_all() == []


def test_seconds_add_up_over_attempts(pipeline, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            self.now += 5  # every look at the clock is five seconds later
            return self.now

    monkeypatch.setattr(groundup.pipeline.run, "time", Clock())
    pipeline.failing = {"tokenizer"}
    for _ in range(2):
        with pytest.raises(RuntimeError):
            pipeline.execute_all()
    pipeline.failing = set()
    assert pipeline.run().execute()["tokenizer"]["seconds"] == 15


class Crash(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_kill_at_any_moment_is_survived(tmp_path, monkeypatch):
    """Crash before and after every change of the file system, and again during the recovery; then run to the end."""
    expected = ToyPipeline(tmp_path / "expected")
    expected.execute_all(base={"depth": 5})
    countdown = 0

    def crashing(function):
        def call(*arguments, **options):
            nonlocal countdown
            for moment in ("before", "after"):
                countdown -= 1
                if countdown == 0:
                    raise Crash
                if moment == "before":
                    result = function(*arguments, **options)
            return result

        return call

    for owner, name in (
        (groundup.pipeline.run, "write_json"),
        (shutil, "rmtree"),
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "unlink"),
        (Path, "replace"),
    ):
        monkeypatch.setattr(owner, name, crashing(getattr(owner, name)))
    crashes, moment = 0, 0
    while crashes == moment:
        moment += 1
        pipeline = ToyPipeline(tmp_path / f"run{moment}")
        countdown = 0
        pipeline.execute_all()
        countdown = moment
        try:
            pipeline.execute_all(base={"depth": 5})
        except Crash:
            crashes += 1
            countdown = moment // 2 + 1
            with suppress(Crash):
                pipeline.execute_all(base={"depth": 5})
        countdown = 0
        pipeline.execute_all(base={"depth": 5})
        assert pipeline.artifacts() == expected.artifacts(), f"killed at moment {moment}"
        assert not list(pipeline.folder.glob("*.partial")), f"killed at moment {moment}"
        assert pipeline.execute_all(base={"depth": 5}) == []
    assert crashes > 30


def test_a_kill_between_the_manifest_and_the_rename_is_finished(pipeline):
    pipeline.execute_all()
    (pipeline.folder / "base").rename(pipeline.folder / "base.partial")
    assert pipeline.execute_all() == []
    assert (pipeline.folder / "base" / "stage.json").exists() and not (pipeline.folder / "base.partial").exists()


def test_a_kill_while_the_old_artifact_was_taken_away_is_finished(pipeline):
    pipeline.execute_all()
    shutil.copytree(pipeline.folder / "base", pipeline.folder / "base.partial")
    (pipeline.folder / "base" / "stage.json").unlink()
    (pipeline.folder / "base" / "deep" / "model.txt").unlink()
    assert pipeline.execute_all() == []
    assert (pipeline.folder / "base" / "deep" / "model.txt").read_text() == "40 x 4"
    assert not (pipeline.folder / "base.partial").exists()


def test_the_plan_knows_a_stage_that_only_waits_for_its_rename(pipeline):
    pipeline.execute_all()
    (pipeline.folder / "dpo").rename(pipeline.folder / "dpo.partial")
    assert pipeline.plan()["dpo"][0] == "done"


@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_altered_output_is_named(pipeline, harm):
    pipeline.execute_all()
    path = pipeline.folder / "base" / "deep" / "model.txt"
    if harm == "altered":
        path.write_text("40 x 5")
    else:
        path.unlink()
    with pytest.raises(UserError) as caught:
        pipeline.execute_all()
    message = str(caught.value)
    assert str(path) in message and harm in message and "delete" in message and len(message.splitlines()) == 1
    assert pipeline.made == []
    with pytest.raises(UserError) as planned:
        pipeline.plan()
    assert str(planned.value) == message
    shutil.rmtree(pipeline.folder / "base")  # as the message says
    assert pipeline.execute_all() == ["base"]  # comes out the same: sft stays


@pytest.mark.parametrize("damage", [b"", b'{"stage": "base"', b"\xff\xfe", b'{"stage": "base"}'])
def test_damaged_manifest_is_a_user_error(pipeline, damage):
    pipeline.execute_all()
    (pipeline.folder / "base" / "stage.json").write_bytes(damage)
    for act in (pipeline.plan, pipeline.execute_all):
        with pytest.raises(UserError, match=r"base/stage\.json"):
            act()


def test_two_runs_cannot_work_in_the_same_folder(pipeline):
    pipeline.execute_all()
    hold = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(pipeline.folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another groundup run is working"):
            pipeline.execute_all(base={"depth": 5})
        assert pipeline.made == [] and not list(pipeline.folder.glob("*.partial"))
        assert pipeline.plan()["base"][0] == "done"  # looking is allowed
        other.kill()
    assert pipeline.execute_all(base={"depth": 5}) == ["base", "sft"]  # the lock dies with its holder

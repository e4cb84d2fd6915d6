"""The small version of benchmarks/run_bit_flips.py: 40 flips and cuts, none of which may go wrong in silence."""

import random
import shutil
import sys
from pathlib import Path

import pytest

from groundup.pipeline import recipe as recipes

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import run_bit_flips


@pytest.fixture(scope="module")
def copy(tiny_run, tmp_path_factory):
    return shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("flips") / "tiny")


def test_of_a_finished_run_each_is_refused_by_who_reads_it(copy, tiny_recipe):
    outcomes = run_bit_flips.finished(copy, recipes.load(tiny_recipe), random.Random(1), 25)
    assert {outcome for _, _, outcome, _ in outcomes} <= {"refused", "as before"}, outcomes
    assert sum(outcome == "refused" for _, _, outcome, _ in outcomes) >= 22


@pytest.mark.parametrize(("stage", "flips"), [("annotations", 5), ("sft", 5), ("ppo", 5)])
def test_of_a_half_made_run_each_is_passed_over_or_made_again(copy, tiny_recipe, tmp_path, stage, flips):
    outcomes = run_bit_flips.half_made(copy, tmp_path, recipes.load(tiny_recipe), stage, random.Random(2), flips)
    assert {outcome for _, _, outcome, _ in outcomes} <= {"passed over or made again", "refused"}, outcomes

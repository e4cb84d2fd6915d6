import pytest

from groundup.core.cost import cost as cost_of
from groundup.core.errors import UserError
from groundup.core.seals import write_sealed
from groundup.scaling import training_cost
from groundup.scaling.training_cost import THRESHOLDS_FLOP


def by_name(sheet):
    return {line["what"]: line for line in sheet["lines"]}


def test_llama_3_follows_from_its_flop_line_by_line():
    sheet = training_cost.llama3()
    for line in sheet["lines"]:
        if line["published"] is not None:
            assert line["value"] == pytest.approx(line["published"], rel=0.03), line["what"]
    lines = by_name(sheet)
    assert lines["rented compute"]["value"] + lines["staff"]["value"] == pytest.approx(77e6, rel=0.02)
    assert {"energy", "carbon", "flights", "time"} <= lines.keys()
    below = {one["rule"]: one["above"] for one in sheet["thresholds"]}
    assert not below["US Executive Order 14110"] and below["EU AI Act, Article 51"]
    assert any("water" in name for name in sheet["left_out"])


def test_where_published_figures_do_not_agree_that_is_said_with_a_reason():
    checks = training_cost.llama3()["checks"]
    assert sum(one["agree"] for one in checks) >= 3
    apart = [one for one in checks if not one["agree"]]
    assert len(apart) >= 3 and all(one["why"] for one in apart)
    for one in checks:
        assert one["agree"] == (0.95 <= one["ratio"] <= 1.05)


def test_a_planned_run_uses_the_one_rule_of_cost():
    sheet = by_name(
        training_cost.bill(3.12e21, "a100", 10, 0.5, price=2.0, grams=300, overhead=1.2, staff=2, salary=1e5, years=0.5)
    )
    hours = 3.12e21 / (312e12 * 0.5) / 3600
    spent = cost_of(hours * 3600, 400 * 1.2, 2.0, 300)
    assert sheet["GPU hours"]["value"] == pytest.approx(hours)
    assert sheet["time"]["value"] == pytest.approx(hours / 240)
    assert sheet["rented compute"]["value"] == pytest.approx(spent["dollars"])
    assert sheet["energy"]["value"] == pytest.approx(spent["kwh"])
    assert sheet["carbon"]["value"] == pytest.approx(spent["grams_co2e"] / 1e6)
    assert sheet["staff"]["value"] == 1e5


@pytest.mark.parametrize("gpu", training_cost.HARDWARE)
def test_all_hardware_has_a_source_and_a_date(gpu):
    kind = training_cost.HARDWARE[gpu]
    assert kind.source[-4:].isdigit() or "arXiv" in kind.source
    assert 1e14 <= kind.flop_per_second <= 1e16 and 100 <= kind.watts <= 2000 and kind.price > 0
    assumed = {line["what"] for line in training_cost.bill(1e20, gpu)["assumptions"]}
    assert {"hardware", "utilisation", "power", "overhead", "price", "carbon of the grid"} <= assumed


def test_a_finished_run_is_billed_by_its_seconds(tmp_path):
    for name, seconds, results in (("base", 3000.0, {"flop": 4e12}), ("sft", 600.0, {})):
        (tmp_path / name).mkdir()
        manifest = {"stage": name, "key": {}, "outputs": {}, "digest": "", "seconds": seconds, "results": results}
        write_sealed(tmp_path / name / "stage.json", manifest)
    sheet = training_cost.of_run(tmp_path, watts=100, price=0.5, grams=400)
    lines = by_name(sheet)
    assert lines["compute"]["value"] == 4e12 and lines["time"]["value"] == 1.0
    assert lines["energy"]["value"] == pytest.approx(0.1) and lines["machine"]["value"] == 0.5
    assert not any(one["above"] for one in sheet["thresholds"])
    assert "measured, 2 stages" in training_cost.shown(sheet)


def test_what_cannot_be_billed_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no finished stage"):
        training_cost.of_run(tmp_path, 30, 0.1, 400)
    with pytest.raises(UserError, match="no hardware 'abacus'"):
        training_cost.bill(1e20, "abacus")


def test_a_run_above_a_threshold_says_so():
    rules = {one["rule"] for one in training_cost.bill(2e26)["thresholds"] if one["above"]}
    assert rules == set(THRESHOLDS_FLOP)

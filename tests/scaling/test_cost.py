import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.cost import cost as cost_of
from groundup.model.flops import training_flops
from groundup.scaling.training_cost import LLAMA3_405B, THRESHOLDS_FLOP

LLAMA = LLAMA3_405B


def test_six_n_d_gives_the_flop_that_llama_3_reports():
    assert training_flops(LLAMA["parameters"], 0, 0, 0, LLAMA["tokens"]) == pytest.approx(LLAMA["flop"], rel=0.02)


def test_attention_adds_what_palm_says():
    # PaLM 540B: 118 layers, width 18432 (48 heads of 256 make 12288 of attention), context 2048, 780e9 tokens.
    alone = training_flops(540.35e9, 0, 0, 0, 780e9)
    whole = training_flops(540.35e9, 118, 48 * 256, 2048, 780e9)
    assert whole == pytest.approx(2.56e24, rel=0.01)
    assert whole - alone == 12 * 118 * 48 * 256 * 2048 * 780e9


def test_the_lecture_s_figures_agree_with_each_other():
    run = cost_of(
        seconds=LLAMA["gpu_hours"] * 3600, watts=LLAMA["gpu_watts"], price_per_hour=2.0, grams_co2_per_kwh=220
    )
    assert run["dollars"] == pytest.approx(LLAMA["compute_dollars"])
    assert LLAMA["staff"] * LLAMA["dollars_per_employee"] == LLAMA["staff_dollars"]
    assert LLAMA["gpus"] * LLAMA["days"] * 24 == pytest.approx(LLAMA["gpu_hours"], rel=0.05)
    # 18 GWh; 4,000 t follow at 220 g a kWh, between the grids of Norway and of the United States.
    assert run["kwh"] == pytest.approx(18.2e6)
    assert run["grams_co2e"] / 1e6 == pytest.approx(LLAMA["tonnes_co2e"], rel=0.01)


def test_llama_3_is_below_the_american_threshold_and_above_the_european():
    assert LLAMA["flop"] < THRESHOLDS_FLOP["US Executive Order 14110"] == 1e26
    assert LLAMA["flop"] > THRESHOLDS_FLOP["EU AI Act, Article 51"]


@given(st.floats(0, 1e7), st.floats(0, 1e6), st.floats(0, 1e3), st.floats(0, 1e3))
def test_cost_is_linear_in_time(seconds, watts, price, carbon):
    once, twice = cost_of(seconds, watts, price, carbon), cost_of(2 * seconds, watts, price, carbon)
    assert all(twice[key] == pytest.approx(2 * once[key]) for key in once)


def test_one_kilowatt_for_one_hour():
    assert cost_of(3600, 1000, 0.1, 400) == {"kwh": 1.0, "dollars": 0.1, "grams_co2e": 400.0}

"""The law that ships, and how a text's losses are carried to it."""

import json

import numpy as np
import pytest

from groundup.scaling import laws, run_table, time_budget


def test_the_shipped_law_is_that_of_its_table():
    law, rows = time_budget.shipped(), json.loads(time_budget.FILE.read_text())["table"]
    table = np.array([[one[name] for name in ("parameters", "tokens", "loss")] for one in rows]).T
    fitted = laws.fit(run_table.runs_of(*table), draws=2, curved=True)
    assert fitted.law.gamma == pytest.approx(law.fit.law.gamma, rel=0.05)
    assert fitted.law.loss(*table[:2]) == pytest.approx(law.fit.law.loss(*table[:2]), rel=1e-3)
    assert len(rows) == law.about["runs"] == len(law.fit.residuals)


@pytest.mark.parametrize("length", time_budget.PILOTS)
def test_a_pilot_on_the_ladders_own_text_has_the_factor_one(monkeypatch, length):
    place = 315_712, length
    law = time_budget.shipped()
    measured = 1.1 * float(law.fit.law.loss(*place))  # where the law, of longer runs, is a tenth too low
    monkeypatch.setitem(law.about, "pilots", {str(one): 1.1 if one == length else 0.5 for one in time_budget.PILOTS})
    assert time_budget.pilots_factor(measured, *place) == pytest.approx(1)
    assert time_budget.pilots_factor(0.8 * measured, *place) == pytest.approx(0.8)

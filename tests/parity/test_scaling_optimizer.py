"""The small BFGS of `scaling.laws` against scipy's, on the same objective."""

import numpy as np
import pytest

from groundup.scaling import laws, run_table

scipy_optimize = pytest.importorskip("scipy.optimize", reason="needs the `bench` extra")


def test_no_start_of_scipys_ends_lower():
    generator = np.random.default_rng(0)
    n, d = 10 ** generator.uniform(7, 10, 80), 10 ** generator.uniform(9, 11, 80)
    loss = laws.Law(406.4, 410.7, 1.69, 0.3392, 0.2849).loss(n, d) * np.exp(0.01 * generator.standard_normal(80))
    problem, weights = laws.Problem(run_table.runs_of(n, d, loss), laws.DELTA), np.ones((1, 80))
    start = problem.starting_points(weights)

    def objective(x):
        value, slope = problem.value_and_gradient(x[None], weights)
        return value[0], slope[0]

    theirs = min(
        scipy_optimize.minimize(objective, start[0] * generator.uniform(0.8, 1.2, 5), jac=True, method="BFGS").fun
        for _ in range(10)
    )
    _, ours = laws.minimise(lambda points, at: problem.value_and_gradient(points, weights[at]), start)
    assert ours[0] <= theirs * (1 + 1e-5)

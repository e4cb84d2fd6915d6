"""Krippendorff's alpha against the `krippendorff` package."""

import numpy as np
import pytest

from groundup.labelling.agreement import krippendorff_alpha

krippendorff = pytest.importorskip("krippendorff", reason="needs the `test` extra")


@pytest.mark.parametrize("seed", range(20))
def test_alpha_equals_that_of_the_package(seed):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 4, 40)
    ratings = np.where(draw.random((40, 5)) < 0.6, truth[:, None], draw.integers(0, 4, (40, 5)))
    ratings[draw.random((40, 5)) < 0.3] = -1
    theirs = np.where(ratings < 0, np.nan, ratings).T
    assert krippendorff_alpha(ratings) == pytest.approx(
        krippendorff.alpha(reliability_data=theirs, level_of_measurement="nominal"), abs=1e-12
    )

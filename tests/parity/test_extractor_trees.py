import numpy as np
import pytest

from groundup.corpus.extract.train_extractor import OPTIONS, _flat

lightgbm = pytest.importorskip("lightgbm", reason="LightGBM is in the bench extra")


def test_our_trees_give_lightgbm_s_probabilities():
    random = np.random.default_rng(0)
    x = random.normal(size=(3_000, 12)).astype(np.float32)
    x[:, 3] = np.round(x[:, 3])
    label = 1 / (1 + np.exp(-x[:, 0] * x[:, 1] - x[:, 3]))
    booster = lightgbm.train(OPTIONS, lightgbm.Dataset(x, label), 20)
    ours = _flat(booster.dump_model()).probability(x)
    # A number within rounding of a threshold may go the other way: ours are float32, LightGBM's float64.
    assert np.isclose(ours, booster.predict(x), rtol=1e-5).mean() > 0.999

"""Our statistics are those of scipy and scikit-learn on random cases."""

import numpy as np
import pytest

from groundup.core.statistics import wilson
from groundup.evaluation import hallucination, metrics

stats = pytest.importorskip("scipy.stats", reason="needs scipy")
calibration = pytest.importorskip("sklearn.calibration", reason="needs scikit-learn")
sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")


@pytest.fixture(params=range(5))
def random(request):
    return np.random.default_rng(request.param)


def test_intervals_and_errors(random):
    n = int(random.integers(5, 400))
    values = (random.random(n) < random.random()).astype(float)
    theirs = stats.binomtest(int(values.sum()), n).proportion_ci(method="wilson")
    assert wilson(values.sum(), n) == pytest.approx((theirs.low, theirs.high), abs=1e-4)  # 1.96 for 1.95996
    assert metrics.standard_error(values) == pytest.approx(stats.sem(values))


def test_sign_test(random):
    wins, losses = map(int, random.integers(0, 300, 2))
    assert metrics.sign_test(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_clustered_error_is_the_sandwich(random):
    """Liang and Zeger's for a mean, as regression on a constant: (X'X)^-1 (sum of (X_c' u_c)^2) (X'X)^-1."""
    values, clusters = random.random(60), random.integers(0, 9, 60)
    x, u = np.ones((60, 1)), (values - values.mean())[:, None]
    middle = sum((x[clusters == c].T @ u[clusters == c]) @ (u[clusters == c].T @ x[clusters == c]) for c in np.unique(clusters))
    bread = np.linalg.inv(x.T @ x)
    assert metrics.standard_error(values, clusters.astype(str)) == pytest.approx(np.sqrt(bread @ middle @ bread).item())


def test_brier(random):
    probabilities = random.dirichlet([1, 1, 1, 1], 80)
    right = random.integers(0, 4, 80)
    theirs = sklearn.brier_score_loss(right, probabilities, labels=[0, 1, 2, 3], scale_by_half=False)
    assert metrics.calibration(probabilities, right)["brier"] == pytest.approx(theirs)


def test_calibration_errors(random):
    """By scikit-learn's bins over the confidence in the choice; theirs are without how many are in each."""
    probabilities = random.dirichlet([1, 1, 1], 90)
    right = random.integers(0, 3, 90)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == right
    found = metrics.calibration(probabilities, right)
    shares, means = calibration.calibration_curve(hit, confidence, n_bins=10)
    counts = np.histogram(confidence, np.linspace(0, 1, 11))[0]
    assert found["ece"] == pytest.approx((np.abs(shares - means) * counts[counts > 0]).sum() / 90)
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx([*shares])
    shares, means = calibration.calibration_curve(hit, confidence, n_bins=10, strategy="quantile")
    assert found["adaptive_ece"] == pytest.approx(np.abs(shares - means).mean())  # 9 in each


def test_confidence_against_correctness(random):
    confidence = random.random(120).round(2)
    right = (random.random(120) < confidence).astype(float)
    pairs = np.column_stack((confidence, right))
    assert hallucination.auroc(pairs) == pytest.approx(sklearn.roc_auc_score(right, confidence))
    assert hallucination.brier(pairs) == pytest.approx(sklearn.brier_score_loss(right, confidence))
    # A confidence on a border belongs to the bin below.
    shares, means = calibration.calibration_curve(right, np.maximum(confidence - 1e-9, 0), n_bins=10)
    counts = np.bincount(hallucination._bins(pairs), minlength=10)
    assert hallucination.ece(pairs) == pytest.approx((np.abs(shares - means) * counts[counts > 0]).sum() / 120, abs=1e-7)

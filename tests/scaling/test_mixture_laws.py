import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from groundup.core import toml
from groundup.core.errors import UserError
from groundup.data.config import MixtureConfig
from groundup.data.mixture import plan
from groundup.scaling import mixture_laws
from groundup.scaling.mixture_laws import Swarm

DOMAINS = ["books", "code", "forum", "news"]


def swarm(runs=60, noise=0.0, seed=0):
    """Books help the target most, then news; the rest does not."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(4, 0.7), runs)
    loss = 4 - 1.0 * np.sqrt(weights[:, 0]) - 0.5 * np.sqrt(weights[:, 3]) + noise * generator.standard_normal(runs)
    return Swarm(DOMAINS, ["target", "other"], weights, np.stack([loss, 7 - loss], axis=1))


@pytest.mark.parametrize("kind", mixture_laws.KINDS)
def test_a_law_of_each_kind_is_found_where_it_holds(kind):
    weights, slope = np.random.default_rng(0).dirichlet(np.ones(4), 80), np.array([-1.0, 0.3, 0.0, -0.4])
    loss = {
        "linear": 4 + weights @ slope, "square-roots": 4 + np.sqrt(weights) @ slope, "exponential": 2 + np.exp(weights @ slope)
    }[kind]  # fmt: skip
    fitted = {one: mixture_laws.fit(weights[:60], loss[:60], one) for one in mixture_laws.KINDS}
    errors = {one: np.abs(law.loss(weights[60:]) - loss[60:]).max() for one, law in fitted.items()}
    assert errors[kind] < 0.02
    ranks = {one: mixture_laws.unseen_rank_correlation(weights, loss[:, None], one) for one in mixture_laws.KINDS}
    assert ranks[kind] > 0.99


def test_square_roots_rank_unseen_mixtures_better_than_lines():
    some = swarm(noise=0.01)
    loss = some.losses[:, :1]
    square, line = (mixture_laws.unseen_rank_correlation(some.weights, loss, kind) for kind in ("square-roots", "linear"))
    assert square > line and square > 0.98


def test_the_best_mixture_is_proposed_with_its_gain():
    told = mixture_laws.propose(swarm(noise=0.01), ["target"], pull=0.0)
    # Of -sqrt(b) - sqrt(n) / 2 with b + n = 1 the best is b = 4/5.
    assert told["weights"]["books"] == pytest.approx(0.8, abs=0.05)
    assert told["weights"]["news"] == pytest.approx(0.2, abs=0.05)
    assert sum(told["weights"].values()) == pytest.approx(1, abs=1e-3)
    assert 0 < told["gain"]["low"] <= told["gain"]["value"] <= told["gain"]["high"]
    assert mixture_laws.propose(swarm(noise=0.01), ["target"], pull=0.0) == told


@settings(max_examples=4, deadline=None)
@given(ratio=st.floats(0.3, 3), seed=st.integers(0, 1000))
def test_of_two_targets_neither_takes_all(ratio, seed):
    """Losses 2 + exp(-3 a) and 2 + ratio exp(-3 b) of shares a + b = 1: least where a = 1/2 - log(ratio) / 6."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(4, 0.7), 40)
    losses = 2 + np.exp(-3 * weights[:, [0, 3]]) * [1, ratio] + 0.002 * generator.standard_normal((40, 2))
    told = mixture_laws.propose(Swarm(DOMAINS, ["one", "two"], weights, losses), pull=0.0)
    assert told["law"] == "exponential" and told["gain"]["low"] > 0
    assert told["weights"]["books"] == pytest.approx(0.5 - np.log(ratio) / 6, abs=0.07)
    assert told["weights"]["books"] + told["weights"]["news"] > 0.93


def test_a_law_of_a_mean_is_the_mean_of_its_targets_laws():
    some = swarm(noise=0.01)
    both = mixture_laws.fit_targets(some.weights, some.losses, "exponential")
    each = [mixture_laws.fit(some.weights, loss, "exponential").loss(some.weights) for loss in some.losses.T]
    assert both.loss(some.weights) == pytest.approx((each[0] + each[1]) / 2)


def test_another_target_asks_for_another_mixture():
    told = mixture_laws.propose(swarm(), ["other"])
    assert told["weights"].get("books", 0) < 0.05


def test_a_pull_keeps_near_the_natural_mix():
    some, natural = swarm(noise=0.01), dict.fromkeys(DOMAINS, 1e6)
    weak, strong = (mixture_laws.propose(some, ["target"], natural, pull=pull)["weights"] for pull in (0.01, 10.0))
    assert all(abs(strong[name] - 0.25) < 0.05 for name in DOMAINS)
    assert weak["books"] > strong["books"] + 0.2


def test_no_domain_is_repeated_more_than_the_cap_and_the_mixture_draws_what_was_proposed():
    available = {"books": 1_000_000, "code": 9_000_000, "forum": 9_000_000, "news": 2_000_000}
    told = mixture_laws.propose(swarm(), ["target"], available, tokens=20e6, max_repeats=4.0, pull=0.0)
    assert told["weights"]["books"] <= 0.2 + 1e-3 and told["at_their_cap"] == ["books", "news"]
    written = toml.dumps({"mixture": {"max_repeats": 4.0, "weights": told["weights"]}})
    import tomllib

    config = TypeAdapter(MixtureConfig).validate_python(tomllib.loads(written)["mixture"])
    drawn = plan(available, config.weights, 20_000_000, config.max_repeats)
    for name, share in told["weights"].items():
        assert drawn.shares[name] == pytest.approx(share, abs=2e-3)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda values: sum(values) > 0.01),
    st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
)
def test_capped_weights_add_up_and_stay_below_their_caps(weights, caps):
    limits = np.array(caps[: len(weights)])
    limits = limits * max(1.0, 1.01 / limits.sum())
    found = mixture_laws.capped(np.array([weights]), limits)[0]
    assert found.sum() == pytest.approx(1) and (found <= limits * (1 + 1e-6)).all() and (found >= 0).all()


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.integers(0, 99))
@settings(max_examples=40)
def test_rank_correlation(values, seed):
    one = np.array(values, dtype=float)
    other = np.random.default_rng(seed).permutation(one)
    found = mixture_laws.rank_correlation(one, other)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert found == pytest.approx(mixture_laws.rank_correlation(other**3, one), abs=1e-9)
    assert mixture_laws.rank_correlation(one, one) == pytest.approx(float(len(set(values)) > 1))


def test_rank_correlation_of_known_ranks():
    assert mixture_laws.rank_correlation(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.8)
    assert mixture_laws.rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)


HEAD = "weight_a,weight_b,loss_x\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "weight_DOMAIN"),
        ("weight_a,loss_x\n1,2\n", "weight_DOMAIN"),
        ("weight_a,weight_a,loss_x\n", "two columns"),
        (HEAD + "0.5,,3\n", ":2: weight_b is missing"),
        (HEAD + "0.5,0.5,\n", ":2: loss_x is missing"),
        (HEAD + "1.5,-0.5,3\n", ":2: weight_b -0.5 is not"),
        (HEAD + "0.5,0.1,3\n", ":2: its weights add up to 0.6"),
        (HEAD + "0.5,0.5,0\n", ":2: loss_x 0 is not"),
        (HEAD + "0.5,0.5\n", ":2: 2 entries"),
        (HEAD + "0.5,0.5,3\n" * 4, "1 runs are too few"),
        (HEAD + "".join(f"0.5,0.5,{3 + n}\n" for n in range(12)), "all 12 runs have one mixture"),
        (HEAD + "0.5,0.5,nan\n" * 9, r"0 runs \(without 9 diverged\) are too few"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, said):
    path = tmp_path / "swarm.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        mixture_laws.read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"targets": ["sports"]}, "no loss of 'sports'"),
        ({"available": {"books": 1.0}}, "must name each domain"),
        ({"tokens": 1e6}, "only where available"),
        ({"available": dict.fromkeys(DOMAINS, 1e3), "tokens": 1e6}, "train on fewer"),
    ],
)
def test_what_cannot_be_proposed_is_one_line(options, said):
    with pytest.raises(UserError, match=said):
        mixture_laws.propose(swarm(20), **options)


def test_a_run_that_stands_there_twice_does_not_predict_itself(tmp_path, caplog):
    rows = [f"{n / 20},{1 - n / 20},{3 + n}\n" for n in range(12)]
    path = tmp_path / "swarm.csv"
    path.write_text(HEAD + "".join(rows) + rows[3] * 5)
    assert len(mixture_laws.read(path).losses) == 12 and "5 stand there twice: left out (line 14, 15" in caplog.text


def test_a_domain_that_is_given_twice_is_refused():
    with pytest.raises(UserError, match=r"'a=2': 'a' is given twice"):
        mixture_laws.parse_available(["a=1", "a=2"])


def test_a_domain_of_which_the_runs_tell_nothing_is_said(tmp_path, caplog):
    rows = [f"{n / 20:.4g},{1 - n / 20:.4g},0,{3 - n / 30:.4f}" for n in range(1, 13)]
    (tmp_path / "swarm.csv").write_text("weight_a,weight_b,weight_c,loss_x\n" + "\n".join(rows))
    mixture_laws.read(tmp_path / "swarm.csv")
    assert "all 12 runs have the same share of 'c'" in caplog.text and len(caplog.records) == 1

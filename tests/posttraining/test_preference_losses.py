"""The family of losses on pairs: what holds of each by its definition. tests/parity/test_trl.py has TRL's numbers."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.config import configured
from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.posttraining import dpo
from groundup.posttraining.config import KNOWN_BY, DpoConfig, Loss
from groundup.posttraining.preference_losses import LOSSES, Pairs, length_desensitised, loss_of, rewards, scores
from groundup.training.runtime import Runtime

FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())

NATS = st.floats(-30, -0.5)


def pairs(columns, tokens=((3.0,), (5.0,))):
    chosen, rejected, reference_chosen, reference_rejected = (torch.tensor(column) for column in columns)
    counts = [torch.tensor(side * len(chosen) if len(side) == 1 else side) for side in tokens]
    return Pairs(chosen, rejected, reference_chosen, reference_rejected, *counts, chosen)


KNOWS = set(KNOWN_BY["label_smoothing"])


def settings(loss, **more):
    return DpoConfig(loss=loss, **{**({"label_smoothing": 0.1} if loss in KNOWS else {}), **more})


def test_each_name_has_a_loss():
    assert tuple(LOSSES) == get_args(Loss)


@given(st.lists(st.tuples(NATS, NATS), min_size=1, max_size=5), st.floats(0.05, 1))
def test_values_where_the_policy_is_its_reference(columns, beta):
    chosen, rejected = zip(*columns, strict=True)
    at_start = pairs((chosen, rejected, chosen, rejected))
    half = math.log(2)
    expected = {
        "sigmoid": half, "conservative": half, "robust": half, "sigmoid_norm": half, "hinge": 1, "ipo": 1 / (4 * beta**2),
        "nca_pair": 2 * half, "bco_pair": 2 * half, "sppo_hard": 1 / (2 * beta**2), "apo_zero": 1, "apo_down": 1,
        "discopop": half / 2 + 0.5, "aot": half, "aot_unpaired": half,
    }  # fmt: skip
    for loss, value in expected.items():
        found = loss_of(at_start, settings(loss, beta=beta))
        assert found.mean().item() == pytest.approx(value, rel=1e-4), loss
    assert all(one.abs().max() == 0 for one in rewards(at_start, settings("sigmoid", beta=beta)))


RAISE = ("sigmoid", "conservative", "robust", "hinge", "sigmoid_norm", "simpo", "bco_pair", "aot", "apo_zero")


@given(st.tuples(NATS, NATS, NATS, NATS), st.sampled_from(RAISE))
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(columns, loss):
    some = pairs([[one] for one in columns])
    some.chosen.requires_grad_(), some.rejected.requires_grad_()
    loss_of(some, settings(loss, label_smoothing=0.0)).sum().backward()
    assert some.chosen.grad <= 0 <= some.rejected.grad


@given(st.tuples(NATS, NATS, NATS, NATS), st.floats(0.01, 1))
def test_conservative_is_the_mean_over_flipped_labels_and_robust_undoes_it(columns, beta):
    straight = pairs([[one] for one in columns])
    w, l, rw, rl = columns  # noqa: E741
    flipped = pairs([[one] for one in (l, w, rl, rw)])
    plain, other = (loss_of(one, settings("sigmoid", beta=beta)).item() for one in (straight, flipped))
    mixed = loss_of(straight, settings("conservative", beta=beta, label_smoothing=0.2)).item()
    assert mixed == pytest.approx(0.8 * plain + 0.2 * other, rel=1e-4, abs=1e-6)
    both = [loss_of(one, settings("robust", beta=beta, label_smoothing=0.2)).item() for one in (straight, flipped)]
    assert 0.8 * both[0] + 0.2 * both[1] == pytest.approx(plain, rel=1e-3, abs=1e-4)


def test_simpo_takes_no_reference_and_means():
    one, other = (pairs(([-6.0], [-20.0], [reference], [-1.0]), ((3.0,), (4.0,))) for reference in (-3.0, -9.0))
    for some in (one, other):
        found = loss_of(some, settings("simpo", beta=2.0, simpo_margin=0.5)).item()
        assert found == pytest.approx(math.log(1 + math.exp(-(2 * (-2 + 5) - 0.5))))


@given(st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=4, max_size=4), st.floats(0, 1))
def test_tokens_beyond_the_shorter_answer_count_alpha(masks, alpha):
    mask = torch.tensor(masks, dtype=torch.float32)
    logp = -torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * mask
    found = length_desensitised(logp, mask, alpha)
    for row in range(4):
        shared = int(min(mask[row].sum(), mask[(row + 2) % 4].sum()))
        said = logp[row][mask[row] > 0].tolist()
        assert found[row].item() == pytest.approx(sum(said[:shared]) + alpha * sum(said[shared:]), abs=1e-5)
    assert torch.allclose(length_desensitised(logp, mask, 1.0), logp.sum(1))


@given(st.tuples(NATS, NATS, NATS, NATS))
def test_divergences_meet_where_they_should(columns):
    some = pairs([[one] for one in columns])
    plain = scores(some, settings("sigmoid"))
    limit = scores(some, settings("sigmoid", divergence="alpha_divergence", alpha_divergence=1.0))
    assert torch.equal(torch.cat(plain), torch.cat(limit))
    for name in ("forward_kl", "js_divergence", "alpha_divergence"):  # each grows with the ratio
        chosen, rejected = scores(some, settings("sigmoid", divergence=name))
        assert bool(chosen >= rejected) == bool(plain[0] >= plain[1]) or torch.isclose(chosen, rejected)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loss": "exo_pair"}, "label_smoothing = 0: exo_pair"),
        ({"loss": "aot", "pairs_at_once": 4}, "pairs_at_once = 4: aot is of a whole batch"),
        ({"label_smoothing": 0.1}, "label_smoothing = 0.1: sigmoid does not know it"),
        ({"loss": "nca_pair", "divergence": "forward_kl"}, "divergence = forward_kl: nca_pair does not know it"),
        ({"loss": {"sigmoid": 1, "nca_pair": 1}, "divergence": "forward_kl"}, "nca_pair has no other than reverse_kl"),
        ({"alpha_divergence": 0.2}, "alpha_divergence = 0.2: is of divergence = alpha_divergence alone"),
        ({"loss": "ipo", "simpo_margin": 1.0}, "simpo_margin = 1.0: ipo does not know it"),
        ({"loss": "sft", "ld_alpha": 0.5}, "ld_alpha = 0.5: sft does not know it"),
        ({"loss": "orpo"}, "no loss 'orpo'; known: sigmoid, "),
        ({"loss": {"sigmoid": 0}}, "the weight of sigmoid must be a number above 0, not 0"),
        ({"loss": {"sigmoid": math.nan}}, "the weight of sigmoid must be a number above 0, not nan"),
        ({"loss": {}}, "expected the name of a loss"),
        ({"loss": ["sigmoid"]}, "expected the name of a loss"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_together(changes, said):
    with pytest.raises(UserError, match=said) as refused:
        configured(DpoConfig, changes, "dpo")
    assert len(str(refused.value)) < 300 and "alue error" not in str(refused.value)


@given(st.tuples(NATS, NATS, NATS, NATS), st.dictionaries(st.sampled_from(get_args(Loss)), st.floats(0.1, 5), min_size=1))
def test_several_losses_add_up_by_their_weights(columns, weights):
    some = pairs([[one] for one in columns])
    whole = loss_of(some, DpoConfig(loss=weights, label_smoothing=0.1 if KNOWS & set(weights) else 0.0)).item()
    parts = [
        weight * loss_of(some, DpoConfig(loss=name, label_smoothing=0.1 if name in KNOWS else 0.0)).item()
        for name, weight in weights.items()
    ]
    assert whole == pytest.approx(sum(parts), rel=1e-4, abs=1e-4)


def test_the_reference_is_computed_once_for_a_policy_and_pairs(toy_decoder, toy_tokenizer, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"what is {n}", "chosen": "the path", "rejected": "it returns " * (1 + n % 2)} for n in range(6)
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(dpo, "_log_probabilities", lambda *arguments: asked.append(1) or reference(*arguments))
    weights = []
    for number, (seed, beta, cache) in enumerate([(1, 0.1, "a"), (1, 0.1, "a"), (1, 0.1, "b"), (1, 0.3, "a"), (2, 0.1, "a")]):
        policy = toy_decoder(seed=seed, scale=0.1, vocab_size=toy_tokenizer.size)
        config = DpoConfig(beta=beta, learning_rate=1e-3)
        folder = tmp_path / str(number)
        dpo.train(policy, toy_tokenizer, rows, config, Runtime(FLOAT32, folder, "dpo"), cache=tmp_path / cache)
        weights.append(torch.cat([parameter.flatten() for parameter in policy.parameters()]))
    assert len(asked) == 3 and torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    [path] = (tmp_path / "b").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")  # damaged: computed again
    policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    dpo.train(policy, toy_tokenizer, rows, DpoConfig(), Runtime(FLOAT32, tmp_path / "again", "dpo"), cache=tmp_path / "b")
    assert len(asked) == 4


reference = dpo._log_probabilities

import math

import pytest
import torch

from groundup.scaling import transfer
from groundup.scaling.transfer import (
    RULES,
    best_scale,
    coordinate_check,
    losses_by_scale,
    model_of_width,
    spread,
    train_first_steps,
)

VOCABULARY, CONTEXT = 40, 16


def rows(step):
    """A text of counting: each token is the one before and one."""
    begin = torch.randint(VOCABULARY, (4, 1), generator=torch.Generator().manual_seed(step))
    return (begin + torch.arange(CONTEXT + 1)) % VOCABULARY


def lr_of(rule, width, name):
    return RULES[rule](width)(name, torch.nn.Parameter(torch.empty(2, 2)))


def test_the_rules_agree_on_hidden_matrices_and_gains():
    for width in (64, 2048):
        for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
            assert lr_of("ours", width, name) == lr_of("root", width, name)


def test_the_embeddings_rate_stays_and_the_heads_falls_with_the_width():
    names = ("embed_tokens.weight", "lm_head.weight")
    embedding, head = ([lr_of("ours", width, name)[1] for width in (128, 512)] for name in names)
    assert embedding[0] == embedding[1] and head[0] == pytest.approx(4 * head[1])
    embedding, head = ([lr_of("root", width, name)[1] for width in (192, 768)] for name in names)
    assert embedding == pytest.approx([0.4, 0.2]) and head == pytest.approx([0.008, 0.004])


def test_training_learns():
    model = model_of_width(64, VOCABULARY, CONTEXT)
    losses = train_first_steps(model, RULES["ours"](64), rows, 12, 12)
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.01) and losses[-1] < 0.7 * losses[0]


def test_kernels_train_as_pytorch_does(monkeypatch):
    found = train_first_steps(model_of_width(64, VOCABULARY, CONTEXT), RULES["ours"](64), rows, 6, 6)

    def unavailable(*_):
        raise transfer.kernels.Unavailable("not here")

    monkeypatch.setattr(transfer.Decoder, "use_kernels", unavailable)
    plain = train_first_steps(model_of_width(64, VOCABULARY, CONTEXT), RULES["ours"](64), rows, 6, 6)
    assert found == pytest.approx(plain, abs=1e-3)
    rounded = train_first_steps(model_of_width(64, VOCABULARY, CONTEXT), RULES["ours"](64), rows, 6, 6, torch.bfloat16)
    assert rounded == pytest.approx(plain, abs=0.05)


def test_the_rate_rises_and_falls_as_in_a_training(monkeypatch):
    seen = []
    monkeypatch.setattr(transfer.Optimizer, "step", lambda self, multiplier: seen.append(multiplier))
    coordinate_check((64,), "root", rows, VOCABULARY, CONTEXT, steps=12, seeds=1)
    assert seen == pytest.approx([*(step / 10 for step in range(1, 11)), 1, 1])  # the first of RUN steps, a fiftieth warm-up
    seen.clear()
    train_first_steps(model_of_width(64, VOCABULARY, CONTEXT), RULES["ours"](64), rows, 5, 5)
    assert seen == [1, 1, 1, 1, 0.5]


def test_coordinates_are_of_every_block_and_width():
    found = coordinate_check((64, 128), "root", rows, VOCABULARY, CONTEXT, steps=2)
    assert "logits" in found and len(found) == 1 + 2 * transfer.DEPTH
    assert all(set(sizes) == {64, 128} and min(sizes.values()) > 0 for sizes in found.values())
    assert spread({64: 1.0, 128: 1.5}) == 1.5


def test_a_head_whose_rate_grows_with_the_width_is_noticed(monkeypatch):
    def wrong(width, scale=1.0):
        right = transfer.mup_lrs(width, scale)
        return lambda name, parameter: (right(name, parameter)[0], right(name, parameter)[1] * (width / 64) ** 2)

    monkeypatch.setitem(RULES, "wrong", wrong)
    sizes = {rule: coordinate_check((64, 128), rule, rows, VOCABULARY, CONTEXT, steps=2)["logits"] for rule in ("ours", "wrong")}
    assert spread(sizes["wrong"]) > 1.5 * spread(sizes["ours"])


def test_the_best_scale_is_that_of_least_loss():
    found = losses_by_scale((64,), (0.01, 1.0), "ours", rows, VOCABULARY, CONTEXT, 8)
    assert found[64][1.0] < found[64][0.01] and best_scale(found[64]) == (1.0, found[64][1.0])


def test_the_best_scale_lies_between_those_tried():
    losses = {scale: 3 + (math.log(scale) - 0.1) ** 2 for scale in (0.5, 0.7, 1.0, 1.4, 2.0)}
    scale, loss = best_scale(losses)
    assert scale == pytest.approx(math.exp(0.1)) and loss == pytest.approx(3)
    assert best_scale({**losses, 2.0: math.inf}) == (1.0, losses[1.0])  # one diverged
    falling = {scale: 3 - math.log(scale) + 0.01 * math.log(scale) ** 2 for scale in losses}
    assert best_scale(falling)[0] == pytest.approx(2)  # none beyond what was tried
    assert best_scale({scale: 6 - loss for scale, loss in losses.items()})[0] == 0.5  # no valley


def test_coordinates_are_the_mean_of_their_seeds():
    sizes = [coordinate_check((64,), "ours", rows, VOCABULARY, CONTEXT, steps=2, seeds=count)["logits"][64] for count in (1, 2)]
    assert sizes[0] != sizes[1] and sizes[1] == pytest.approx(sizes[0], rel=0.5)

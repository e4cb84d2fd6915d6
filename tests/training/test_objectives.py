import pytest
import torch
import torch.nn.functional as F

from groundup.training.objectives import next_token


def batch(mask=None):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (3, 12), generator=generator)
    targets = torch.randint(50, (3, 12), generator=generator)
    weight = torch.ones(3, 12) if mask is None else mask
    return {"ids": ids, "targets": targets, "weight": weight / weight.sum()}


def test_is_cross_entropy(toy_decoder):
    model, some = toy_decoder(), batch()
    loss, metrics = next_token(model, some, torch.float32)
    expected = F.cross_entropy(model(some["ids"]).flatten(0, 1), some["targets"].flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5) and metrics == {"loss": loss.item()}


def test_only_weighted_targets_count(toy_decoder):
    mask = (torch.arange(12) >= 7).float().expand(3, 12)
    model, some = toy_decoder(), batch(mask)
    loss, _ = next_token(model, some, torch.float32)
    expected = F.cross_entropy(model(some["ids"])[:, 7:].flatten(0, 1), some["targets"][:, 7:].flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    changed = some | {"targets": torch.where(mask.bool(), some["targets"], 0)}
    assert next_token(model, changed, torch.float32)[0].item() == loss.item()


def test_bfloat16_is_close(toy_decoder):
    model, some = toy_decoder(scale=0.1), batch()
    exact, _ = next_token(model, some, torch.float32)
    rounded, _ = next_token(model, some, torch.bfloat16)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02) and rounded.dtype == torch.float32
    rounded.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())

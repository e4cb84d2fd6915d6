"""The kernels against transformers: as near to its float32 gradients as its own bfloat16."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from groundup import kernels
from groundup.model import native_layers
from groundup.model.decoder import Decoder, shape_for
from groundup.model.likelihood import weighted_log_probability

CONFIG, _ = shape_for(2, vocabulary=128, context=64)


def gradients(model, loss):
    loss.backward()
    found = {name: parameter.grad.float() for name, parameter in model.named_parameters()}
    return loss.item(), found


def test_gradients_of_one_step_are_those_of_transformers():
    try:
        native_layers.check(CONFIG, 64)
    except kernels.Unavailable as error:
        pytest.skip(str(error))
    sizes = CONFIG.as_dict() | {"rope_parameters": {"rope_type": "default", "rope_theta": CONFIG.rope_theta}}
    for name in ("model_type", "rope_theta"):
        sizes.pop(name)
    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(Qwen3Config(**sizes, initializer_range=0.1))
    ours = Decoder(CONFIG)
    ours.load_state_dict(theirs.state_dict())
    ours.use_kernels(64)
    ids = torch.randint(128, (2, 65))
    weights = torch.full((2, 64), 1 / 128)
    loss, found = gradients(ours, -weighted_log_probability(ours, ids[:, :-1], ids[:, 1:], weights, dtype=torch.bfloat16))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = Qwen3ForCausalLM(theirs.config).to(dtype)
        model.load_state_dict(theirs.state_dict())
        logits = model(input_ids=ids[:, :-1]).logits.float()
        results.append(gradients(model, torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())))
    (exact_loss, exact), (_, plain) = results
    assert loss == pytest.approx(exact_loss, abs=5e-3)
    for name, gradient in exact.items():
        distances = [((one[name] - gradient).norm() / gradient.norm()).item() for one in (found, plain)]
        assert distances[0] < 1.2 * distances[1] + 1e-3, name
        assert distances[0] < 0.05, name

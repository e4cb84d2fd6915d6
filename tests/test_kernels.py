"""The kernels against PyTorch: about as near to float32 as its own bfloat16, and exact where they must be."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundup import kernels
from groundup.core.device import choose
from groundup.kernels import workspace
from groundup.model import architectures, likelihood, native_layers
from groundup.model.decoder import Decoder, DecoderConfig, RewardModel, shape_for
from groundup.training.by_kernels import by_kernels, in_use
from groundup.training.optimizer import NEWTON_SCHULZ, Optimizer, orthogonalise, pretraining_lrs
from groundup.training.runtime import Runtime
from kernel_models import a_batch, distance, randomised, update_alike

CONFIG = DecoderConfig(
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=96,
    max_position_embeddings=128,
)


def available():
    try:
        native_layers.check(CONFIG, 96)
        return ""
    except kernels.Unavailable as error:
        return str(error)


needs_kernels = pytest.mark.skipif(bool(available()), reason=available())


def random_model(config=CONFIG, with_kernels=False):
    model = randomised(Decoder(config))
    if with_kernels:
        model.use_kernels(96)
    return model


def loss_and_gradients(model, dtype, batch=None):
    model.zero_grad()
    loss = -likelihood.weighted_log_probability(model, *(batch or a_batch()), dtype=dtype)
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@needs_kernels
@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"head_dim": 64}, {"vocab_size": 96}]
)
def test_loss_and_gradients_are_about_as_near_to_float32_as_those_of_pytorch_in_bfloat16(changes):
    config = replace(CONFIG, **changes)
    batch = a_batch(config.vocab_size)
    loss, expected = loss_and_gradients(random_model(config), torch.float32, batch)
    plain_loss, plain = loss_and_gradients(random_model(config), torch.bfloat16, batch)
    ours_loss, ours = loss_and_gradients(random_model(config, with_kernels=True), torch.bfloat16, batch)
    assert ours_loss == pytest.approx(loss, abs=2 * abs(plain_loss - loss) + 1e-3)
    for name in expected:
        assert distance(ours[name], expected[name]) < 1.2 * distance(plain[name], expected[name]) + 1e-3, name


def log_probabilities_and_gradients(model, dtype, wanted, ids, targets):
    model.zero_grad()
    found = likelihood.token_log_probabilities(model, ids, targets, dtype=dtype, wanted_BT=wanted)
    (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
    return found.detach(), {name: one.grad.clone() for name, one in model.named_parameters()}


@needs_kernels
@pytest.mark.parametrize("alike", [0, 20])
def test_rows_of_unequal_length_are_about_as_near_to_float32_as_by_pytorch(alike):
    """As post-training has them: answers to questions, of which two may share one (`alike` tokens)."""
    ids, targets, _, _ = a_batch(shape=(7, 59))
    ids[1::2, :alike] = ids[:-1:2, :alike]
    wanted = torch.zeros(ids.shape)
    for row, (begin, end) in enumerate([(20, 59), (20, 33), (21, 40), (30, 31), (22, 25), (20, 47), (5, 9)]):
        wanted[row, begin:end] = 1
    batch = (wanted, ids, targets)
    expected, exact = log_probabilities_and_gradients(random_model(), torch.float32, *batch)
    plain, rounded = log_probabilities_and_gradients(random_model(), torch.bfloat16, *batch)
    ours, found = log_probabilities_and_gradients(random_model(with_kernels=True), torch.bfloat16, *batch)
    assert torch.equal(ours == 0, wanted == 0)
    assert distance(ours, expected) < 1.2 * distance(plain, expected)
    for name in exact:
        assert distance(found[name], exact[name]) < 1.2 * distance(rounded[name], exact[name]) + 1e-3, name
    model = random_model(with_kernels=True)
    again, _ = likelihood.log_probabilities_and_entropies(model, ids, targets, wanted, torch.bfloat16)
    assert torch.equal(again, ours)


@needs_kernels
def test_post_training_in_bfloat16_goes_by_kernels_and_is_the_same_for_any_number_of_threads(caplog, tmp_path):
    ids, _, _, _ = a_batch(shape=(5, 47))
    wanted = torch.zeros(ids.shape)
    wanted[torch.arange(5), torch.tensor([46, 11, 30, 33, 2])] = 1
    scorer, results, before = randomised(RewardModel(CONFIG)), [], torch.get_num_threads()
    device = replace(choose(1), training_dtype=torch.bfloat16)
    with caplog.at_level("INFO"), by_kernels([scorer], Runtime(device, tmp_path, "reward")):
        assert in_use(scorer) and "reward: trained by native kernels in bfloat16" in caplog.text
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                scorer.zero_grad()
                scores = scorer(ids, torch.bfloat16, wanted)
                scores.sum().backward()
                results.append([scores.detach(), *(one.grad.clone() for one in scorer.parameters())])
        finally:
            torch.set_num_threads(before)
    assert not in_use(scorer)
    expected = scorer(ids, wanted_BT=wanted)
    assert torch.allclose(results[0][0], expected, atol=0.05 * expected.abs().max().item())
    for other in results[1:]:
        assert all(torch.equal(one, again) for one, again in zip(results[0], other, strict=True))


@needs_kernels
def test_scoring_within_a_training_in_bfloat16_is_in_float32_and_leaves_it_as_it_was():
    model = randomised(Decoder(CONFIG))
    texts = [list(range(40)), list(range(5, 90))]
    expected = likelihood.score(model, texts)
    model.use_kernels(96)
    found = likelihood.score(model, texts)
    assert all(map(np.array_equal, found, expected))
    assert model.model.kernel_dtype == model.loss_kernel_dtype == torch.bfloat16


@needs_kernels
@pytest.mark.parametrize("name", ["experts", "lstm", "convolution", "patches"])
def test_the_loss_of_every_architecture_goes_by_kernels(name, monkeypatch):
    """Its layers are PyTorch's, so loss and gradients are those in bfloat16 but for the head's product."""

    def model():
        return randomised(architectures.build(name, 3, CONFIG.vocab_size, 96, seed=0)[0])

    loss, expected = loss_and_gradients(model(), torch.float32)
    _, plain = loss_and_gradients(model(), torch.bfloat16)
    ours = model()
    ours.use_kernels(96)
    called, kernel = [], likelihood.kernels.weighted_log_probability
    monkeypatch.setattr(likelihood.kernels, "weighted_log_probability", lambda *a: called.append(1) or kernel(*a))
    ours_loss, found = loss_and_gradients(ours, torch.bfloat16)
    assert called and ours_loss == pytest.approx(loss, abs=2e-3 * loss)
    for part in expected:
        assert distance(found[part], expected[part]) < 1.3 * distance(plain[part], expected[part]) + 1e-2, part
    ours.drop_kernels()
    _, again = loss_and_gradients(ours, torch.bfloat16)
    assert all(torch.equal(again[part], plain[part]) for part in plain)


@needs_kernels
@pytest.mark.parametrize("loud", ["q_norm", "lm_head"])
def test_scores_and_logits_of_hundreds_overflow_nothing(loud):
    def model(with_kernels=False):
        made = random_model(replace(CONFIG, num_hidden_layers=1), with_kernels)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if loud in name:
                    parameter.mul_(60)
        return made

    loss, expected = loss_and_gradients(model(), torch.float32)
    plain_loss, plain = loss_and_gradients(model(), torch.bfloat16)
    ours_loss, ours = loss_and_gradients(model(with_kernels=True), torch.bfloat16)
    assert ours_loss == pytest.approx(loss, abs=2 * abs(plain_loss - loss) + 0.01 * loss)
    for name in expected:
        assert distance(ours[name], expected[name]) < 1.3 * distance(plain[name], expected[name]) + 1e-3, name


@needs_kernels
def test_the_loss_is_that_of_float32_arithmetic_on_the_same_numbers():
    for tokens, width, vocabulary, scale in ((96, 64, 1000, 1), (128, 32, 100, 10), (300, 64, 777, 100)):
        generator = torch.Generator().manual_seed(2)
        hidden = torch.randn(tokens, width, generator=generator).bfloat16()
        weight = scale * torch.randn(vocabulary, width, generator=generator) / width**0.5
        targets = torch.randint(vocabulary, (tokens,), generator=generator)
        slopes = torch.rand(tokens, generator=generator)
        exact_hidden, exact_weight = hidden.double().requires_grad_(), weight.bfloat16().double().requires_grad_()
        logp = torch.log_softmax(exact_hidden @ exact_weight.T, dim=-1).gather(1, targets[:, None]).squeeze(1)
        expected = (logp * slopes).sum()
        expected.backward()
        found, grad_hidden, grad_weight = kernels.weighted_log_probability(
            hidden, weight, targets, torch.arange(tokens), slopes
        )
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)
        assert distance(grad_hidden, exact_hidden.grad) < 2**-8
        assert distance(grad_weight, exact_weight.grad) < 2**-8


@needs_kernels
def test_the_result_is_the_same_to_the_bit_for_any_number_of_threads_and_every_time():
    model, before = random_model(with_kernels=True), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(loss_and_gradients(model, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    for loss, gradients in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(gradients[name], results[0][1][name]) for name in gradients)


@needs_kernels
def test_pytorch_may_take_one_thread_and_kernels_as_many_as_before():
    model, before = random_model(with_kernels=True), torch.get_num_threads()
    loss, expected = loss_and_gradients(model, torch.bfloat16)
    try:
        with kernels.only_in_kernels(), kernels.only_in_kernels():
            assert (torch.get_num_threads(), kernels.threads()) == (1, before)
            same_loss, gradients = loss_and_gradients(model, torch.bfloat16)
        with pytest.raises(ZeroDivisionError), kernels.only_in_kernels():
            1 / 0  # noqa: B018
    finally:
        assert torch.get_num_threads() == kernels.threads() == before
    assert same_loss == loss and all(torch.equal(gradients[name], expected[name]) for name in expected)


@needs_kernels
def test_no_token_sees_a_later_one_or_another_document():
    model = random_model(with_kernels=True)
    ids, _, _, documents = a_batch()
    with torch.no_grad():
        before = model.model(ids, documents, dtype=torch.bfloat16)
        for row, place in ((0, 40), (1, 3), (2, 95)):
            changed = ids.clone()
            changed[row, place] = (changed[row, place] + 1) % CONFIG.vocab_size
            differs = (model.model(changed, documents, dtype=torch.bfloat16) != before).any(-1)
            may = torch.zeros_like(differs)
            may[row, place:] = documents[row, place:] == documents[row, place]
            assert differs[row, place]
            assert not (differs & ~may).any()


@needs_kernels
def test_two_batches_may_be_under_way_at_once():
    model, batch = random_model(with_kernels=True), a_batch()
    _, alone = loss_and_gradients(model, torch.bfloat16)
    model.zero_grad()
    losses = [-likelihood.weighted_log_probability(model, *batch, dtype=torch.bfloat16) for _ in range(2)]
    for loss in losses:
        loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * alone[name], rtol=1e-6, atol=0)


@needs_kernels
def test_memory_is_used_again_and_not_held_twice():
    model, batch = random_model(with_kernels=True), a_batch()
    workspace.release()
    for _ in range(2):
        loss_and_gradients(model, torch.bfloat16)
        with torch.no_grad():
            likelihood.weighted_log_probability(model, *batch, dtype=torch.bfloat16)
        assert len(workspace._free) == 1


@needs_kernels
def test_parameters_in_another_format_raise():
    model = random_model(with_kernels=True)
    model.model.layers[1].mlp.up_proj.weight.data = model.model.layers[1].mlp.up_proj.weight.data.half()
    with pytest.raises(TypeError, match=r"parameters are torch.float16: the kernels take float32"):
        model.model(a_batch()[0], dtype=torch.bfloat16)


@needs_kernels
def test_what_is_not_a_number_is_not_lost():
    for name in ("embed_tokens", "layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj", "norm"):
        model = random_model(with_kernels=True)
        with torch.no_grad():
            model.model.get_submodule(name).weight.view(-1)[::7] = float("nan")
        loss, gradients = loss_and_gradients(model, torch.bfloat16)
        assert loss != loss, name
        assert any(gradient.isnan().any() for gradient in gradients.values()), name


@needs_kernels
def test_a_target_out_of_range_is_refused():
    ids, targets, weights, _ = a_batch()
    targets[0, 0] = CONFIG.vocab_size
    with pytest.raises(IndexError, match="not among the 100 tokens"):
        likelihood.weighted_log_probability(random_model(with_kernels=True), ids, targets, weights, dtype=torch.bfloat16)


@needs_kernels
def test_an_id_out_of_range_is_refused():
    ids, *_ = a_batch()
    for wrong in (-1, CONFIG.vocab_size):
        ids[1, 2] = wrong
        with pytest.raises(IndexError, match="not among the 100 tokens"):
            random_model(with_kernels=True).model(ids, dtype=torch.bfloat16)


@needs_kernels
def test_float32_and_odd_lengths_are_left_to_pytorch():
    plain, model = random_model(), random_model(with_kernels=True)
    ids = a_batch()[0]
    with torch.no_grad():
        assert torch.equal(model.model(ids), plain.model(ids))
        odd = ids[:, :77]
        assert torch.equal(model.model(odd, dtype=torch.bfloat16), plain.model(odd, dtype=torch.bfloat16))


@needs_kernels
def test_the_optimizer_by_kernels_is_the_optimizer():
    models = [random_model(), random_model()]
    optimizers = [
        Optimizer(model, pretraining_lrs(64)[0], dtype=torch.bfloat16, weight_decay=0.1, muon_decay=0.2, kernels=kernels)
        for model, kernels in zip(models, (False, True), strict=True)
    ]
    start = {name: parameter.detach().clone() for name, parameter in models[0].named_parameters()}
    update_alike(models, optimizers)
    ours = dict(models[1].named_parameters())
    for name, parameter in models[0].named_parameters():
        assert distance(ours[name] - start[name], parameter - start[name]) < 0.02, name


@needs_kernels
@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (160, 64)])
def test_muon_is_as_near_to_exact_orthogonality_as_in_pytorch(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight, momentum = torch.zeros(shape), gradient.clone()
    kernels.muon([weight], [momentum], [gradient], 0.5, 1.0, 1.0, NEWTON_SCHULZ)
    exact, plain = (orthogonalise(gradient[None], dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert distance(-weight, exact) < 1.3 * distance(plain, exact)
    assert torch.equal(momentum, gradient)


@needs_kernels
@pytest.mark.parametrize(
    "gradient", [torch.ones(64, 96), torch.outer(torch.arange(96.0), torch.arange(64.0)), torch.zeros(64, 64)]
)
def test_a_gradient_of_one_direction_or_none_moves_no_further(gradient):
    for size in (1e-6, 1, 1e6):
        weight, momentum = torch.zeros_like(gradient), gradient * size
        kernels.muon([weight], [momentum], [momentum.clone()], 0.5, 1.0, 1.0, NEWTON_SCHULZ)
        assert torch.linalg.matrix_norm(weight, 2) < 1.3


def test_shapes_that_do_not_fit_are_refused_with_the_reason():
    for changes, context, reason in (
        ({"hidden_size": 65}, 64, "width 65: no multiple of 32"),
        ({}, 40, "context 40"),
        ({"model_type": "llama"}, 64, "qwen3 only, not llama"),
        ({"head_dim": 512}, 64, "512 channels a head: more than 256"),
    ):
        with pytest.raises(kernels.Unavailable, match=reason):
            native_layers.check(replace(CONFIG, **changes), context)


@needs_kernels
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "no C\\+\\+ compiler"), ("false", "did not compile"), ("g++ -DA='", "CXX=g.*: No closing quotation")],
)
def test_without_a_compiler_the_reason_is_told(monkeypatch, tmp_path, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library_or_reason.cache_clear()
    try:
        with pytest.raises(kernels.Unavailable, match=reason):
            kernels.library()
    finally:
        kernels.library_or_reason.cache_clear()
    assert not list(tmp_path.rglob("*.so"))


def test_a_processor_without_bfloat16_has_none(monkeypatch):
    monkeypatch.setattr(kernels, "has_bfloat16_vectors", lambda: False)
    kernels.library_or_reason.cache_clear()
    try:
        with pytest.raises(kernels.Unavailable, match="no AVX-512"):
            native_layers.check(shape_for(4, 4096, 256)[0], 256)
    finally:
        kernels.library_or_reason.cache_clear()


@needs_kernels
def test_processes_that_compile_at_the_same_time_do_not_harm_each_other(tmp_path):
    code = "from groundup import kernels; kernels.library()"
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)})
        for _ in range(2)
    ]
    assert [one.wait() for one in started] == [0, 0]
    assert len(list(tmp_path.rglob("*"))) == 3  # the folder, a library in bfloat16 and one in float32

"""The kernels in float32 against PyTorch: to its rounding, for any shape, and exact where they must be."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundup import kernels
from groundup.core.device import choose
from groundup.kernels import float32
from groundup.model import architectures, float32_layers, likelihood
from groundup.model.decoder import Decoder, DecoderConfig, RewardModel
from groundup.posttraining import lora
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
    max_position_embeddings=320,
)


pytestmark = pytest.mark.float32_kernels


def random_model(config=CONFIG, with_kernels=False):
    model = randomised(Decoder(config))
    if with_kernels:
        model.use_kernels(96, torch.float32)
    return model


def loss_and_gradients(model, batch=None):
    model.zero_grad()
    loss = -likelihood.weighted_log_probability(model, *(batch or a_batch()))
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def alike(found, expected, most=2e-5):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert distance(found[1][name], gradient) < most, name


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (3, 96)),
        ({}, (2, 77)),
        ({"num_key_value_heads": 4}, (1, 299)),
        ({"num_key_value_heads": 1, "head_dim": 16}, (4, 5)),
        ({"head_dim": 64, "vocab_size": 96}, (2, 130)),
        ({"hidden_size": 304, "intermediate_size": 528, "head_dim": 48, "vocab_size": 601}, (2, 33)),
    ],
)
@pytest.mark.parametrize("documents", [True, False])
def test_loss_and_gradients_are_those_of_pytorch(changes, shape, documents):
    config = replace(CONFIG, **changes)
    *batch, numbers = a_batch(config.vocab_size, shape)
    batch.append(numbers % 3 if documents else None)  # a document may go on after another
    alike(loss_and_gradients(random_model(config, True), batch), loss_and_gradients(random_model(config), batch))


def test_the_gradients_of_token_log_probabilities_are_those_of_pytorch():
    ids, targets, weights, _ = a_batch()
    results = []
    for model in (random_model(), random_model(with_kernels=True)):
        logp = likelihood.token_log_probabilities(model, ids, targets, wanted_BT=weights, temperature=0.7)
        (logp.square() * weights).sum().backward()
        results.append((logp.detach(), {name: one.grad for name, one in model.named_parameters()}))
        again, entropy = likelihood.log_probabilities_and_entropies(model, ids, targets, weights, torch.float32, 0.7)
        assert torch.equal(again, results[-1][0])
        results[-1][1]["entropy"] = entropy
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    for name, gradient in results[0][1].items():
        assert distance(results[1][1][name], gradient) < 2e-5, name


@pytest.mark.parametrize("name", ["experts", "lstm", "convolution", "patches"])
def test_the_loss_of_every_architecture_goes_by_kernels(name, monkeypatch):
    def model():
        return randomised(architectures.build(name, 3, CONFIG.vocab_size, 96, seed=0)[0])

    expected, ours = loss_and_gradients(model()), model()
    ours.use_kernels(96, torch.float32)
    called, kernel = [], float32.weighted_log_probability
    monkeypatch.setattr(float32, "weighted_log_probability", lambda *given: called.append(1) or kernel(*given))
    alike(loss_and_gradients(ours), expected, most=1e-4)
    assert called
    ours.drop_kernels()
    again = loss_and_gradients(ours)
    assert all(torch.equal(again[1][part], expected[1][part]) for part in again[1]) and len(called) == 1


@pytest.mark.parametrize("loud", ["q_norm", "lm_head"])
def test_scores_and_logits_of_hundreds_overflow_nothing(loud):
    models = [random_model(replace(CONFIG, num_hidden_layers=1), native) for native in (False, True)]
    for model in models:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if loud in name:
                    parameter.mul_(60)
    plain, ours = map(loss_and_gradients, models)
    alike(ours, plain, most=2e-3)  # a score of hundreds has an error of 1e-4, and so has what is e to it


def test_the_result_is_the_same_to_the_bit_for_any_number_of_threads_and_every_time():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            model = random_model(with_kernels=True)
            optimizer = Optimizer(model, pretraining_lrs(64)[0], weight_decay=0.1, kernels=True)
            for _ in range(2):
                loss, _ = loss_and_gradients(model)
                optimizer.step(1.0)
            results.append((loss, [one.detach() for one in model.parameters()]))
    finally:
        torch.set_num_threads(before)
    for loss, parameters in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(one, other) for one, other in zip(parameters, results[0][1], strict=True))


def test_a_row_is_the_same_to_the_bit_in_any_company():
    model, (ids, *_) = random_model(with_kernels=True), a_batch(shape=(5, 77))
    with torch.no_grad():
        together = model.model(ids)
        for row in range(5):
            assert torch.equal(model.model(ids[row : row + 1]), together[row : row + 1])
        assert torch.equal(model.model(ids[:, :50]), together[:, :50])


def test_no_token_sees_a_later_one_or_another_document():
    model = random_model(with_kernels=True)
    ids, _, _, documents = a_batch(shape=(3, 150))
    with torch.no_grad():
        before = model.model(ids, documents)
        for row, place in ((0, 40), (1, 3), (2, 140)):
            changed = ids.clone()
            changed[row, place] = (changed[row, place] + 1) % CONFIG.vocab_size
            differs = (model.model(changed, documents) != before).any(-1)
            may = torch.zeros_like(differs)
            may[row, place:] = documents[row, place:] == documents[row, place]
            assert differs[row, place]
            assert not (differs & ~may).any()


def test_two_batches_may_be_under_way_at_once():
    model, batch = random_model(with_kernels=True), a_batch()
    _, alone = loss_and_gradients(model)
    model.zero_grad()
    for loss in [-likelihood.weighted_log_probability(model, *batch) for _ in range(2)]:
        loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * alone[name], rtol=1e-6, atol=0)


def test_what_is_not_a_number_is_not_lost():
    for name in ("embed_tokens", "layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj", "norm"):
        model = random_model(with_kernels=True)
        with torch.no_grad():
            model.model.get_submodule(name).weight.view(-1)[::7] = float("nan")
        loss, gradients = loss_and_gradients(model)
        assert loss != loss, name
        assert any(gradient.isnan().any() for gradient in gradients.values()), name


def test_ids_and_targets_out_of_range_and_wrong_numbers_are_refused():
    ids, targets, weights, _ = a_batch()
    model = random_model(with_kernels=True)
    for wrong in (-1, CONFIG.vocab_size):
        for tensor in (ids, targets):
            given = tensor.clone()
            given[2, 90] = wrong
            pair = (given, targets) if tensor is ids else (ids, given)
            with pytest.raises(IndexError, match="not among the 100 tokens"):
                likelihood.weighted_log_probability(model, *pair, torch.ones_like(weights))
    with pytest.raises(TypeError, match="float64"):
        model.double().model(ids)
    square = torch.zeros(32, 32)
    for wrong in (square.double(), square[:, ::2]):
        with pytest.raises(TypeError, match="contiguous float32"):
            float32.adamw([wrong], [wrong.contiguous()], [wrong], [wrong], (0.9, 0.95), 0.1, 1.0, 1)
    for hidden, head in ((torch.zeros(3, 24), torch.zeros(5, 24)), (square.double(), square), (square, torch.zeros(5, 16))):
        with pytest.raises(TypeError, match="multiple of 16"):
            float32.log_probabilities(hidden, head, torch.zeros(len(hidden), dtype=torch.long), torch.arange(1))


def test_shapes_that_do_not_fit_are_refused_with_the_reason():
    for changes, reason in (
        ({"hidden_size": 72}, "width 72: no multiple of 16"),
        ({"model_type": "llama"}, "qwen3 only, not llama"),
        ({"head_dim": 512}, "512 channels a head: more than 256"),
    ):
        with pytest.raises(kernels.Unavailable, match=reason):
            float32_layers.check(replace(CONFIG, **changes))


def test_adapters_are_trained_by_kernels_as_by_pytorch(tmp_path):
    results = []
    for native in (False, True):
        model = random_model(with_kernels=native)
        with lora.adapted(model, 4, 0, tmp_path):
            for number, one in enumerate(one for name, one in model.named_parameters() if "lora_B" in name):
                torch.nn.init.normal_(one, std=0.1, generator=torch.Generator().manual_seed(number))
            results.append(loss_and_gradients(model))
    alike(results[1], results[0])
    assert all("lora" in name for name in results[0][1])


def in_float32(folder, label):
    """A run on this machine as on one without bfloat16."""
    return Runtime(replace(choose(1), training_dtype=torch.float32), folder, label)


def test_rewards_and_their_gradients_are_those_of_pytorch(tmp_path):
    ids, results = a_batch(shape=(4, 45))[0], []
    plain = randomised(RewardModel(CONFIG))
    ours = copy.deepcopy(plain)
    with by_kernels([ours], in_float32(tmp_path, "reward")):
        for model in (plain, copy.deepcopy(ours)):  # a copy goes by kernels too
            scores = model(ids)
            scores[:, -1].sum().backward()
            results.append((scores.sum().item(), {name: one.grad for name, one in model.named_parameters()}))
    alike(results[1], results[0])
    # Other last bits somewhere: the kernels were at work.
    assert any(not torch.equal(one, results[0][1][name]) for name, one in results[1][1].items())
    assert ours.model.kernel_dtype is None


@pytest.mark.parametrize("muon", [True, False])
def test_the_optimizer_by_kernels_is_the_optimizer(muon):
    rates = pretraining_lrs(64)[0] if muon else lambda name, parameter: ("adamw", 0.01)
    models = [random_model(), random_model()]
    optimizers = [
        Optimizer(model, rates, weight_decay=0.1, muon_decay=0.2, kernels=native)
        for model, native in zip(models, (False, True), strict=True)
    ]
    update_alike(models, optimizers)
    ours = dict(models[1].named_parameters())
    for name, parameter in models[0].named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=1e-5)


def test_adamw_is_that_of_pytorch_for_any_number_of_parameters():
    for count in (1, 15, 16, 45):
        generator = torch.Generator().manual_seed(count)
        start, *gradients = torch.randn(4, count, generator=generator)
        theirs, ours = torch.nn.Parameter(start.clone()), torch.cat((start, torch.full((16,), 7.0)))
        optimizer = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2)
        moments = torch.zeros(count), torch.zeros(count)
        for updates, gradient in enumerate(gradients, 1):
            theirs.grad = gradient
            optimizer.step()
            float32.adamw(
                [ours[:count]], [gradient], [moments[0]], [moments[1]], (0.9, 0.95), 0.1, 1 - 0.1 * 0.2, updates
            )
        torch.testing.assert_close(ours[:count], theirs.detach(), rtol=1e-5, atol=1e-6)
        assert (ours[count:] == 7).all()


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (160, 64), (16, 336)])
def test_muon_makes_of_a_gradient_what_pytorch_does(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight, momentum = torch.zeros(shape), gradient.clone()
    float32.muon([weight], [momentum], [gradient], 0.5, 1.0, 1.0, NEWTON_SCHULZ)
    assert distance(-weight, orthogonalise(gradient[None], torch.float32)[0]) < 1e-5
    assert torch.equal(momentum, gradient)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [("qwen3", "sft: trained by native kernels"), ("llama", "sft: native kernels disabled: they know qwen3")],
)
def test_post_training_says_whether_it_goes_by_kernels(model_type, said, caplog, tmp_path):
    model, runtime = Decoder(replace(CONFIG, model_type=model_type)), in_float32(tmp_path, "sft")
    with caplog.at_level("INFO"), by_kernels([model], runtime):
        assert (model.model.kernel_dtype is not None) == in_use(model) == (model_type == "qwen3")
    assert said in caplog.text
    assert not in_use(model)


def test_parts_of_a_weight_that_are_not_alike_raise_and_touch_nothing():
    weight, other, odd = torch.ones(32, 32), torch.ones(32, 16), torch.ones(32, 20)
    for weights, gradients in (([weight], [other]), ([odd], [odd.clone()]), ([weight, other], [weight.clone(), other.clone()])):
        with pytest.raises(TypeError, match="shape"):
            float32.muon(weights, [one.clone() for one in weights], gradients, 0.5, 1.0, 1.0, NEWTON_SCHULZ)
    with pytest.raises(TypeError, match="shapes"):
        float32.adamw([weight], [weight.clone()], [weight.clone()], [other], (0.9, 0.99), 1.0, 1.0, 1)
    hidden, head, places = torch.ones(4, 64), torch.ones(100, 64), torch.arange(4)
    for targets in (torch.zeros(4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(TypeError, match="int64"):
            float32.log_probabilities(hidden, head, targets, places)
    assert bool((weight == 1).all() and (other == 1).all() and (odd == 1).all())


@pytest.mark.parametrize("name", ["dense", "experts", "lstm", "convolution"])
def test_scoring_goes_by_kernels_and_leaves_none_behind(name, monkeypatch):
    """What PyTorch gives to its rounding; of the dense decoder the same bits in any company, and for several threads at once."""
    model = randomised(architectures.build(name, 2, CONFIG.vocab_size, 64, seed=0)[0])
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(CONFIG.vocab_size, (length,), generator=generator).tolist() for length in (1, 2, 40, 65, 150, 40)]
    called, kernel = [], likelihood.float32.log_probabilities
    monkeypatch.setattr(likelihood.float32, "log_probabilities", lambda *a: called.append(1) or kernel(*a))
    found = likelihood.score(model, texts)
    assert called and not in_use(model)
    with monkeypatch.context() as plain:
        plain.setattr(model, "use_kernels", lambda *_: (_ for _ in ()).throw(kernels.Unavailable("not here")))
        expected = likelihood.score(model, texts)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose(ours, theirs, atol=2e-4)
    if name == "dense":
        assert all(map(np.array_equal, found, likelihood.score(model, texts, batch_tokens=1)))
        with ThreadPoolExecutor(3) as pool:
            for again in pool.map(lambda _: likelihood.score(model, texts), range(6)):
                assert all(map(np.array_equal, found, again))

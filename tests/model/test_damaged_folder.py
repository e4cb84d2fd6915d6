"""Model folders that are damaged, or say what they do not hold: refused in a line before memory is asked for."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from groundup.core.errors import UserError
from groundup.generation.engine import Sampling, generate
from groundup.model import architectures, model_folder
from groundup.model.origin import Origin


@pytest.fixture(scope="module")
def whole(toy_decoder, toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    model_folder.save(path, toy_decoder(vocab_size=320), toy_tokenizer, chat=True)
    model_folder.load_decoder(path)  # at its first use torch notes which functions make tensors on meta: before one is patched
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(path):
    with pytest.raises(UserError) as error:
        model_folder.load_decoder(path)
    line = str(error.value).replace(str(path), "")
    assert "\n" not in line and len(line) < 250
    return line


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 400), st.sampled_from([10**9, 2**31 - 1, 2**63, 10**400]), st.floats(),
    st.text(max_size=300), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=9), st.floats()),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_entry_of_config_loads_or_is_refused_and_nothing_large_is_made(whole, tmp_path, monkeypatch, data):
    path = tmp_path / "fuzzed"
    shutil.copytree(whole, path, dirs_exist_ok=True)
    config = json.loads((whole / "config.json").read_text())
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2)):
        config[name] = data.draw(VALUES)
    (path / "config.json").write_text(json.dumps(config))
    made, empty = [], torch.empty

    def counted(*size, **options):
        made.append(empty(*size, **options))
        return made[-1]

    monkeypatch.setattr(torch, "empty", counted)
    try:
        model_folder.load_decoder(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) - len(str(path)) < 250
    assert all(tensor.is_meta or tensor.numel() < 1e5 for tensor in made)
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim"])
def test_sizes_are_not_believed(copy, name):
    edit(copy / "config.json", **{name: 10**9})
    assert "config.json" in (line := refused(copy)) or "should be" in line


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1e-6, 1e300])
@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_numbers_that_are_none_are_refused(copy, name, value):
    edit(copy / "config.json", **{name: value, "rope_parameters": None})
    assert name in refused(copy)


@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id", "pad_token_id"])
def test_ids_out_of_range_are_refused(copy, name):
    for value in (320, [1, 10**9], -2, "1", True):
        edit(copy / "config.json", **{name: value})
        assert name in refused(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(copy, value):
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, copy / "model.safetensors")
    assert "model.norm.weight has numbers that are not finite" in refused(copy)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_kind_are_refused(copy, kind):
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(kind)
    save_file(weights, copy / "model.safetensors")
    assert "model.norm.weight is in" in refused(copy)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "../model.safetensors"}, "no safetensors file of this folder"),
        ({"a": "/etc/passwd"}, "no safetensors file of this folder"),
        ({"a": "x" * 5000 + ".safetensors"}, "no safetensors file of this folder"),
        ({"a": "a\0.safetensors"}, "no safetensors file of this folder"),
        ({"a": 3}, "not an index"),
        ([], "not an index"),
        ({"none": "a.safetensors"}, "is not in a.safetensors, as the index says"),
        ({"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}, "is in a.safetensors too"),
    ],
)
def test_an_index_that_is_wrong_is_refused(copy, weight_map, said):
    shutil.move(copy / "model.safetensors", copy / "a.safetensors")
    shutil.copy(copy / "a.safetensors", copy / "b.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert said in refused(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_json_without_bound_is_refused(copy, file):
    for content in ("[" * 20_000, '{"a":' * 20_000, '{"vocab_size": ' + "9" * 5000 + "}", "\ufeff{}", "[]", ""):
        (copy / file).write_text(content)
        assert file in refused(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_only_plain_files_are_opened(copy, file):
    (copy / file).unlink()
    os.mkfifo(copy / file)
    assert "not a plain file" in refused(copy)


def test_a_convolution_that_never_grows_is_refused(toy_tokenizer, tmp_path):
    model, _ = architectures.build("convolution", 1, toy_tokenizer.size, 32, 0)
    model_folder.save(tmp_path, model, toy_tokenizer, chat=False)
    model_folder.load_decoder(tmp_path)
    edit(tmp_path / "config.json", kernel_size=1)
    assert "kernel_size is 1" in refused(tmp_path)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token_are_never_picked(whole, toy_tokenizer, temperature):
    model = model_folder.load_decoder(whole)
    assert model.unused_ids == tuple(range(toy_tokenizer.size, 320))
    with torch.no_grad():
        model.lm_head.weight[toy_tokenizer.size :] = 40 * model.lm_head.weight[:20]
    sampling = Sampling(20, temperature)
    (answer,) = generate(model, [[1, 2, 3]], [], sampling, 0)
    assert max(answer) < toy_tokenizer.size
    toy_tokenizer.decode(answer)
    model.config = replace(model.config, origin=Origin())
    assert max(generate(model, [[1, 2, 3]], [], sampling, 0)[0]) >= toy_tokenizer.size


@pytest.mark.parametrize("name", ["dense", "experts", "lstm", "convolution"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_picked_from_logits_that_are_not_finite(name, temperature):
    model, _ = architectures.build(name, 1, 50, 32, 0, 4, 2)
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        generate(model, [[1, 2, 3]], [], Sampling(4, temperature), 0)


def test_others_sample_from_all_tokens_as_we_do(whole):
    generation = json.loads((whole / "generation_config.json").read_text())
    assert generation["top_k"] == 0 and generation["do_sample"] is True

"""What a GGUF of a model holds, read by gguf's own reader; llama.cpp itself reads it in benchmarks/serving_gguf.py."""

import json

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the `test` extra")
import gguf

from groundup.core.errors import UserError
from groundup.model import model_folder as folders
from groundup.model.model_folder import load_decoder
from groundup.serving.gguf_file import export
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.tokenizer import Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def made(served_folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf")
    return {
        (name, kind): (export(path, out / f"{name}.{kind}.gguf", kind), gguf.GGUFReader(out / f"{name}.{kind}.gguf"))
        for name, path in served_folders.items()
        for kind in ("f32", "f16", "q8_0")
    }


def value(reader, key):
    return reader.get_field(key).contents()


def test_keys_that_llama_cpp_would_assume_otherwise(made, toy_tokenizer):
    for name in ("chat", "base"):
        _, reader = made[name, "f32"]
        assert value(reader, "general.architecture") == "qwen3" and value(reader, "tokenizer.ggml.pre") == "qwen2"
        assert value(reader, "qwen3.attention.key_length") == 8 and value(reader, "qwen3.rope.freq_base") == 10_000
        tokens, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
        assert len(tokens) == len(kinds) == toy_tokenizer.size
        assert {tokens[number] for number, kind in enumerate(kinds) if kind == 3} == set(toy_tokenizer.special_tokens)
        assert value(reader, "tokenizer.ggml.add_bos_token") is True and value(reader, "tokenizer.ggml.add_eos_token") is False
        assert value(reader, "tokenizer.ggml.bos_token_id") == toy_tokenizer.end_of_text
        assert len(value(reader, "tokenizer.ggml.merges")) == len(toy_tokenizer.merges)
    chat, base = (made[name, "f32"][1] for name in ("chat", "base"))
    assert value(chat, "tokenizer.ggml.eos_token_id") == value(chat, "tokenizer.ggml.eot_token_id") == toy_tokenizer.message_end
    assert value(base, "tokenizer.ggml.eos_token_id") == toy_tokenizer.end_of_text
    assert "generation" not in value(chat, "tokenizer.chat_template").replace("add_generation_prompt", "")


def test_weights_are_those_of_the_folder(made, served_folders):
    model = load_decoder(served_folders["base"])
    for kind, close in (("f32", 0), ("f16", 1e-3), ("q8_0", 2e-2)):
        told, reader = made["base", kind]
        found = {tensor.name: tensor for tensor in reader.tensors}
        assert told["tensors"] == len(found) == len(model.state_dict())
        mlp, norm = model.model.layers[1].mlp.up_proj.weight, model.model.norm.weight
        for name, ours in (("blk.1.ffn_up.weight", mlp), ("output_norm.weight", norm)):
            data = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
            assert np.abs(data - ours.detach().numpy()).max() <= close, (kind, name)


def test_a_llama_has_its_channels_in_llama_cpps_order(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size, model_type="llama")
    folders.save(tmp_path / "llama", model, toy_tokenizer, chat=False)
    export(tmp_path / "llama", tmp_path / "llama.gguf", "f32")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "llama.gguf").tensors}
    q = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    # Of a head of 8 channels those that turn together are 0 and 4, 1 and 5, ...; there they are neighbours.
    assert np.array_equal(found["blk.0.attn_q.weight"][:8], q[[0, 4, 1, 5, 2, 6, 3, 7]])


def test_more_rows_than_tokens_are_unused(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size + 5, tie_word_embeddings=True)
    folders.save(tmp_path / "wide", model, toy_tokenizer, chat=False)
    export(tmp_path / "wide", tmp_path / "wide.gguf", "bf16")
    reader = gguf.GGUFReader(tmp_path / "wide.gguf")
    assert value(reader, "tokenizer.ggml.token_type")[-5:] == [5] * 5
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


def test_a_published_folder_has_its_own_template_end_and_tokens_that_are_text(toy_decoder, toy_tokenizer, tmp_path):
    """As Qwen3's: the template is in tokenizer_config.json, and <think> is no special token."""
    tokenizer = Tokenizer.from_merges(toy_tokenizer.merges, special=[*SPECIAL_TOKENS, "<think>", "<|fim|>"])
    folders.save(tmp_path / "model", toy_decoder(vocab_size=tokenizer.size), tokenizer, chat=True)
    (tmp_path / "model" / "chat_template.jinja").unlink()
    description, settings = (json.loads((tmp_path / "model" / name).read_text()) for name in FILES)
    for token in description["added_tokens"]:
        token["special"] = token["content"] not in ("<think>", "<|fim|>")
    settings |= {"chat_template": "{{ messages[0].content }}<|im_end|>", "eos_token": {"content": "<|endoftext|>"}}
    for name, content in zip(FILES, (description, settings), strict=True):
        (tmp_path / "model" / name).write_text(json.dumps(content))
    export(tmp_path / "model", tmp_path / "model.gguf", "f32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert value(reader, "tokenizer.chat_template") == settings["chat_template"]
    assert value(reader, "tokenizer.ggml.eos_token_id") == tokenizer.end_of_text
    kinds = value(reader, "tokenizer.ggml.token_type")
    assert [kinds[tokenizer.special_tokens[name]] for name in ("<think>", "<|fim|>", "<|im_end|>")] == [4, 3, 3]


@pytest.mark.parametrize(("change", "said"), [
    ({"model_type": "qwen3", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "stretched"), ({}, "type 'q4'"),
])  # fmt: skip
def test_what_is_refused(toy_decoder, toy_tokenizer, tmp_path, change, said):
    folders.save(tmp_path / "model", toy_decoder(vocab_size=toy_tokenizer.size, **change), toy_tokenizer, chat=False)
    with pytest.raises(UserError, match=said):
        export(tmp_path / "model", tmp_path / "model.gguf", "f32" if change else "q4")
    assert not [*tmp_path.glob("*.gguf*")]

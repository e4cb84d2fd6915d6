"""LoRA: only adapters are trained, what is merged is what was trained, and it resumes as all trainings do."""

import json

import pytest
import torch

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.posttraining import lora, sft
from groundup.posttraining.config import DpoConfig, SftConfig
from groundup.posttraining.dpo import train as train_dpo
from groundup.training import loop
from groundup.training.runtime import Runtime

CPU = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())
ROWS = [
    {"messages": [{"role": "user", "content": f"what does {word} return"}, {"role": "assistant", "content": f"the {word}"}]}
    for word in ("path", "file", "function", "it")
]


def weights(model):
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_sft_trains_adapters_and_merges_them(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size)
    before = weights(model)
    settings = SftConfig(lora_rank=4, batch_examples=2, epochs=2, learning_rate=0.01)
    sft.train(model, toy_tokenizer, ROWS, settings, Runtime(CPU, tmp_path, "sft"))
    after = weights(model)
    assert after.keys() == before.keys() and all(one.requires_grad for one in model.parameters())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if name.rpartition(".")[0].endswith((*lora.ATTENTION, *lora.MLP))}
    for name in changed:
        singular = torch.linalg.svdvals(after[name] - before[name])
        assert (singular[4:] < 1e-5).all() and singular[0] > 1e-3


def test_at_the_start_it_is_the_model_and_dpo_begins_at_ln_2(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size)
    pairs = [{"prompt": "what does it return", "chosen": "the path", "rejected": f"the {word}"} for word in ("file", "function")]
    train_dpo(model, toy_tokenizer, pairs, DpoConfig(lora_rank=2, batch_pairs=2), Runtime(CPU, tmp_path, "dpo"))
    rows = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_a_rank_that_is_none_is_refused(toy_decoder, tmp_path):
    with pytest.raises(UserError, match="lora_rank = 17: the smallest matrix of this model has 16"), lora.adapted(
        toy_decoder(), 17, 0, tmp_path
    ):
        pass


def test_a_killed_training_ends_with_the_same_bits(toy_decoder, toy_tokenizer, tmp_path, monkeypatch):
    """The state of the adapters is in the checkpoints, beside the weights that stay."""
    settings = SftConfig(lora_rank=4, batch_examples=2, epochs=3, learning_rate=0.01)

    def train(folder, model):
        sft.train(model, toy_tokenizer, ROWS, settings, Runtime(CPU, folder, "sft"))
        return weights(model), (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    whole = train(tmp_path / "whole", toy_decoder(vocab_size=toy_tokenizer.size))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "AFFORDED_SECONDS", 1e9)
    steps = []

    def stopped(*arguments):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return batch(*arguments)

    batch = sft.weighted_batch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "weighted_batch", stopped)
        train(tmp_path / "killed", toy_decoder(vocab_size=toy_tokenizer.size))
    assert list((tmp_path / "killed").glob("*.safetensors")) + list((tmp_path / "killed").glob("*/*.safetensors"))
    again = train(tmp_path / "killed", toy_decoder(vocab_size=toy_tokenizer.size))
    assert again[1] == whole[1]
    assert all(torch.equal(one, whole[0][name]) for name, one in again[0].items())


def test_other_architectures_are_refused(toy_tokenizer, tmp_path):
    from groundup.model.lstm import LSTM, LSTMConfig

    model = LSTM(LSTMConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, max_position_embeddings=32))
    with pytest.raises(UserError, match="no attention to adapt"), lora.adapted(model, 2, 0, tmp_path):
        pass

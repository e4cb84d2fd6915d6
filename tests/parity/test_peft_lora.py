"""Adapters as peft reads them: on the base model in transformers, the logits of our merged model."""

import pytest
import torch

from groundup.core.device import Device
from groundup.model import model_folder as folders
from groundup.posttraining import sft
from groundup.posttraining.config import SftConfig
from groundup.training.runtime import Runtime

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
peft = pytest.importorskip("peft", reason="needs the `test` extra")
CPU = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())


@pytest.mark.parametrize("experts", [0, 4])
def test_peft_computes_our_logits(experts, toy_decoder, toy_tokenizer, tmp_path):
    moe = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "model_type": "qwen3_moe"}
    model = toy_decoder(vocab_size=toy_tokenizer.size, scale=0.1, **(moe if experts else {}))
    folders.save(tmp_path / "base", model, toy_tokenizer, chat=False)
    ids = torch.arange(20)[None] + 40
    with torch.no_grad():
        before = model(ids)
    rows = [{"messages": [{"role": "user", "content": "what does it"}, {"role": "assistant", "content": "the path"}]}] * 4
    settings = SftConfig(lora_rank=4, batch_examples=2, epochs=4, learning_rate=0.02)
    sft.train(model, toy_tokenizer, rows, settings, Runtime(CPU, tmp_path / "sft", "sft"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "sft" / "adapter").eval()
    with torch.no_grad():
        ours, found = model(ids), theirs(ids).logits
        merged = theirs.merge_and_unload()(ids).logits
    assert (ours - before).abs().max() > 0.01
    torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged, ours, atol=1e-5, rtol=1e-5)

#!/bin/sh
# TRL's DPOTrainer counts the line end that Qwen's chat template writes after <|im_end|> as the last token of an answer.
#
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
# Expected: the log-probability of an answer is that of its tokens and of <|im_end|>, the end-of-sequence token: there a model stops,
#   and what the template writes behind it is nobody's answer.
# Seen: the completion is what the rendered conversation has more than the rendered prompt, so it ends with "\n". Its
#   log-probability is in every sum, of policy and reference, and DPO trains it. A model whose answers were trained up to
#   <|im_end|> never learned that token: the script prints how much of the sum it is for a model made at random.
# What helps: a template that writes the line end before a message, not behind it.
#
# The model is made at random; nothing is downloaded but packages. Exits with 1 if what is seen has changed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "trl==1.16.0"
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" - <<'PYTHON'
from importlib import metadata

import datasets
import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
inner = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=["<|im_start|>"]
)
tokenizer.chat_template = TEMPLATE
torch.manual_seed(0)
config = transformers.Qwen3Config(
    vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=128, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
transformers.Qwen3ForCausalLM(config).save_pretrained("model")
tokenizer.save_pretrained("model")
row = {
    "prompt": [{"role": "user", "content": "hi"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}
settings = trl.DPOConfig(
    output_dir="out", report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=2, gradient_checkpointing=False
)
trainer = trl.DPOTrainer(
    "model", args=settings, train_dataset=datasets.Dataset.from_list([row] * 2), processing_class=tokenizer
)
batch = next(iter(trainer.get_train_dataloader()))
ids, counted = batch["input_ids"][0].cpu(), batch["completion_mask"][0].cpu().bool()
answer = [tokenizer.decode([token]) for token in ids[counted].tolist()]
with torch.no_grad():
    nats = trainer.model(ids[None, :-1].to(trainer.model.device)).logits.log_softmax(-1)[0].gather(-1, ids[1:, None])[:, 0]
nats = nats[counted[1:]]
print(*(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "torch")))
print(f"tokens that are counted as the answer: {answer}")
print(f"log-probability up to <|im_end|>: {nats[:-1].sum():.3f}; with the line end: {nats.sum():.3f} nats")
as_seen = answer == ["y", "e", "s", "<|im_end|>", "\n"]
print("as seen before" if as_seen else "CHANGED")
raise SystemExit(not as_seen)
PYTHON

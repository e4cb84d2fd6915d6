#!/bin/sh
# A GGUF file of a model with stretched positions: transformers opens it as one without, and says nothing.
#
# Versions: transformers 5.23.0, gguf 0.19.0, torch 2.13.0.
# Expected: the positions of the file: `rope.scaling.type`, `.factor` and `.original_context_length` (YaRN: Qwen2.5, Qwen3 of long
#   context), or the divisors of each frequency in the tensor `rope_freqs.weight` (Llama 3.1 and later), as llama.cpp reads both;
#   or a refusal.
# Seen: neither is read, no warning names them, and `config.rope_parameters` is plain. From the first tokens on (YaRN scales
#   attention everywhere), or where positions are far (Llama 3.1), the logits are another model's.
# What helps: set `config.rope_parameters` by hand from the file's metadata, or open the folder that the file was made of.
#
# Exits with 1 if what is seen has changed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "gguf==0.19.0" accelerate
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/home" HF_HUB_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" - <<'PYTHON'
import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = dict(
    vocab_size=64, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.1,
)
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write(model, kind):
    config, rope = model.config, model.config.rope_parameters
    writer = gguf.GGUFWriter("model.gguf", kind)
    sizes = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "head_count": config.num_attention_heads, "vocab_size": config.vocab_size,
        "head_count_kv": config.num_key_value_heads, "key_length": config.head_dim, "value_length": config.head_dim,
        "layer_norm_rms_eps": config.rms_norm_eps, "rope_freq_base": rope["rope_theta"],
    }
    for name, size in sizes.items():
        getattr(writer, f"add_{name}")(size)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    architecture = gguf.MODEL_ARCH.LLAMA if kind == "llama" else gguf.MODEL_ARCH.QWEN3
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):  # GGUF's order of a head's rows
            heads, width = tensor.shape[0] // config.head_dim, tensor.shape[1]
            tensor = tensor.view(heads, 2, config.head_dim // 2, width).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def compare(kind, rope):
    torch.manual_seed(0)
    config, model = (LlamaConfig, LlamaForCausalLM) if kind == "llama" else (Qwen3Config, Qwen3ForCausalLM)
    made = model(config(**SIZES, head_dim=128 if kind == "qwen3" else 64, rope_parameters=rope)).eval()
    write(made, kind)
    read = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.arange(400)[None] * 7 % 64
    apart = (made(ids).logits - read(ids).logits).abs().max().item()
    print(f"{kind}, {rope['rope_type']}: opened as {read.config.rope_parameters}, logits apart by {apart:.2g}")
    return read.config.rope_parameters["rope_type"], apart


print("transformers", transformers.__version__)
plain = [compare(kind, {"rope_type": "default", "rope_theta": 1e6}) for kind in ("qwen3", "llama")]
stretched = [compare("qwen3", YARN), compare("llama", LLAMA3)]
as_seen = all(kind == "default" for kind, _ in plain + stretched)
as_seen = as_seen and max(apart for _, apart in plain) < 1e-4 and min(apart for _, apart in stretched) > 0.05
print("as seen before" if as_seen else "CHANGED")
raise SystemExit(not as_seen)
PYTHON

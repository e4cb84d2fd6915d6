"""A model's folder as one GGUF file, which llama.cpp and what is built on it read.

llama.cpp's own converter knows a vocabulary by a hash and refuses all others, so the file is written here, with the `gguf`
library. What llama.cpp assumes in silence where a key is absent is always written: the size of a head, the base of the rotary
positions, what begins and ends a text, and whether that is put before a text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from groundup.core.errors import UserError
from groundup.core.files import read_object, replacing
from groundup.generation.open_folder import model_folder
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.model.model_folder import load_decoder
from groundup.tokenizer import tokenizer_files
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer, to_characters

if TYPE_CHECKING:
    import gguf

TYPES = ("f32", "f16", "bf16", "q8_0")
FAMILIES = {"qwen3": "QWEN3", "qwen2": "QWEN2", "llama": "LLAMA"}  # by model_type, gguf's name
# llama.cpp knows pre-tokenization patterns by name.
PATTERNS = {"qwen2": "qwen2", "threes": "llama-bpe"}
ORDINARY, CONTROL, TEXT, UNUSED = 1, 3, 4, 5  # kinds of tokens; TEXT, user-defined, is found in texts and printed
GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # which only training needs


def export(source: Path, out: Path, kind: str = "f16", stage: str | None = None) -> dict[str, Any]:
    """Write `out`; what is in it. `kind` is one of TYPES: of matrices; what has one dimension stays float32.

    Raises UserError for a model or tokenizer that a GGUF cannot hold, with the reason.
    """
    if kind not in TYPES:
        raise UserError(f"type {kind[:40]!r}: choose one of {', '.join(TYPES)}")
    folder = model_folder(source, stage)
    model, tokenizer = load_decoder(folder), of_model(folder)
    _check(folder, model, tokenizer)
    import gguf

    family = getattr(gguf.MODEL_ARCH, FAMILIES[model.config.model_type])
    names = gguf.get_tensor_name_map(family, model.config.num_hidden_layers)
    count = size = 0
    with replacing(out) as partial:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[family])
        _write_sizes(writer, model.config, folder.resolve().name, kind)
        _write_tokens(writer, model.config, tokenizer, folder)
        for name, tensor in _tensors(model):
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            data, stored = _stored(tensor, kind)
            writer.add_tensor(target, data, raw_dtype=stored)
            count, size = count + 1, size + data.nbytes
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return {"gguf": str(out), "model": str(folder), "type": kind, "tensors": count, "mb": round(size / 1e6, 1)}


def _check(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    config = model.config
    if not isinstance(model, Decoder) or config.model_type not in FAMILIES:
        raise UserError(f"{folder}: a GGUF is written of {', '.join(FAMILIES)}; this is {config.model_type}")
    if config.rope_scaling:
        raise UserError(f"{folder}: stretched positions ({config.rope_scaling.get('rope_type')}) are not written to a GGUF here")
    pattern = getattr(tokenizer, "pattern", None)
    if not isinstance(tokenizer, Tokenizer) or pattern is None or not tokenizer.merges:
        raise UserError(f"{folder}: its tokenizer is another maker's; llama.cpp's own converter may know it")
    if pattern.name not in PATTERNS:
        raise UserError(f"{folder}: llama.cpp has no pre-tokenization pattern {pattern.name}; it has {', '.join(PATTERNS)}")


def _write_sizes(writer: "gguf.GGUFWriter", config: DecoderConfig, name: str, kind: str) -> None:
    import gguf

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(
        {
            "f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[kind]
    )  # fmt: skip
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_tokens(writer: "gguf.GGUFWriter", config: DecoderConfig, tokenizer: Tokenizer, folder: Path) -> None:
    special = {number: name for name, number in tokenizer.special_tokens.items()}
    ordinary = [to_characters(tokenizer.token_bytes(number)) for number in range(tokenizer.size) if number not in special]
    names = iter(ordinary)
    tokens = [special[number] if number in special else next(names) for number in range(tokenizer.size)]
    files = tokenizer_files.read(folder)
    # As llama.cpp's converter: it would not print a control token, such as <think>, which its folder calls text.
    text = {name for name in tokenizer_files.textual(files) if not (name.startswith("<|") and name.endswith("|>"))}
    kinds = [
        ORDINARY if number not in special else TEXT if special[number] in text else CONTROL for number in range(tokenizer.size)
    ]
    for number in range(tokenizer.size, config.vocab_size):  # llama.cpp counts rows by tokens
        tokens.append(f"[UNUSED{number}]")
        kinds.append(UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PATTERNS[tokenizer.pattern.name])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{to_characters(left)} {to_characters(right)}" for left, right in tokenizer.merges])
    chats = files.named.get("eos_token") not in (None, special.get(tokenizer.end_of_text))
    writer.add_bos_token_id(tokenizer.begin_of_text)
    writer.add_eos_token_id(tokenizer.message_end if chats else tokenizer.end_of_text)
    if chats:
        writer.add_eot_token_id(tokenizer.message_end)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(_begins_with_bos(folder, tokenizer))
    writer.add_add_eos_token(False)
    if files.template is not None:
        writer.add_chat_template(GENERATION_TAGS.sub("", files.template))


def _begins_with_bos(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether other tools put the first token before a text, as the folder tells them."""
    processor = read_object(folder / "tokenizer.json").get("post_processor")
    name = next((name for name, number in tokenizer.special_tokens.items() if number == tokenizer.begin_of_text), "")
    return bool(processor) and name in str(processor)


def _tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """By the names of transformers. A tied head is not written: llama.cpp takes the embedding where there is none."""
    config = model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp turns neighbouring channels of a Llama, transformers those half a head apart.
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        yield name, tensor


def _stored(tensor: Tensor, kind: str) -> tuple[np.ndarray, Any]:
    """The bytes of a tensor and what they are in GGUF's words."""
    import gguf

    data = tensor.detach().float().contiguous().numpy()
    types = gguf.GGMLQuantizationType
    if data.ndim == 1 or kind == "f32":
        return data, types.F32
    if kind == "q8_0" and data.shape[-1] % 32:  # a block has 32 numbers
        kind = "f16"
    stored = {"f16": types.F16, "bf16": types.BF16, "q8_0": types.Q8_0}[kind]
    return gguf.quants.quantize(data, stored), stored

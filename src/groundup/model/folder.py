"""Hugging Face folders, in and out: what is written here is what `from_pretrained`, vLLM and llama.cpp read.

Our modules already carry transformers' names, so there is no conversion: safetensors out, safetensors in. A reward
model is `Qwen3ForSequenceClassification` with one label; the others are `Qwen3ForCausalLM`.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from groundup.errors import UserError
from groundup.files import read_json, write_json, write_tensors
from groundup.model.decoder import Decoder, DecoderConfig, Scorer
from groundup.tokenizer.tokenizer import Tokenizer

ARCHITECTURES = {Decoder: "Qwen3ForCausalLM", Scorer: "Qwen3ForSequenceClassification"}


def save(folder: Path, model: Decoder | Scorer, tokenizer: Tokenizer, *, chat: bool) -> None:
    """Write a model with its tokenizer. `chat`: generation ends at the end of a message, not of a document."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    end = tokenizer.message_end if chat else tokenizer.end_of_text
    ends = [tokenizer.message_end, tokenizer.end_of_text] if chat else tokenizer.end_of_text
    description = {
        "architectures": [ARCHITECTURES[type(model)]],
        "model_type": "qwen3",
        **config.as_dict(),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        # transformers 5 reads rope_parameters and dtype; earlier releases and other tools rope_theta and torch_dtype.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": "float32",
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad,
        "use_cache": True,
    }
    if isinstance(model, Scorer):
        description |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    write_json(folder / "config.json", description)
    if isinstance(model, Decoder):
        sampling = {
            "eos_token_id": ends,
            "pad_token_id": tokenizer.pad,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
        }
        write_json(folder / "generation_config.json", sampling)
    tokenizer.save(folder, model_max_length=config.max_position_embeddings, chat=chat)
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    write_tensors(folder / "model.safetensors", weights, metadata={"format": "pt"})


def load_decoder(folder: Path) -> Decoder:
    """Raises UserError when the folder is not a complete Qwen3 causal model."""
    model = Decoder(_config(folder))
    load_weights(model, folder)
    return model


def load_scorer(folder: Path) -> Scorer:
    """Raises UserError when the folder is not a complete Qwen3 sequence classifier."""
    model = Scorer(_config(folder))
    load_weights(model, folder)
    return model


def _config(folder: Path) -> DecoderConfig:
    description = read_json(folder / "config.json")
    if description.get("model_type") != "qwen3":
        raise UserError(f"{folder}: model_type is {description.get('model_type')!r}; only qwen3 is read")
    rope = description.get("rope_parameters") or {"rope_theta": description.get("rope_theta")}
    scaling = description.get("rope_scaling") or rope
    other = {
        "hidden_act": description.get("hidden_act", "silu") != "silu",
        "attention_bias": description.get("attention_bias", False),
        "use_sliding_window": description.get("use_sliding_window", False),
        "rope_type": scaling.get("rope_type", scaling.get("type", "default")) != "default",
    }
    if differs := [name for name, is_other in other.items() if is_other]:
        raise UserError(f"{folder}/config.json: {', '.join(differs)} is not what groundup's decoder computes")
    try:
        fields = {name: description[name] for name in DecoderConfig.__dataclass_fields__ if name != "rope_theta"}
        return DecoderConfig(**fields, rope_theta=rope["rope_theta"])
    except KeyError as error:
        raise UserError(f"{folder}/config.json: {error.args[0]} is missing") from None


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name not in weights or weights[name].shape != parameter.shape:
            found = tuple(weights[name].shape) if name in weights else "absent"
            raise UserError(f"{path}: {name} should be {tuple(parameter.shape)}, is {found}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])

"""Hugging Face folders, written and read: `from_pretrained` and vLLM read what is written here.

Our modules have transformers' names, so there is no conversion: safetensors out, safetensors in. A reward
model is `Qwen3ForSequenceClassification` (or its family's) with one label; the others are `...ForCausalLM`. LSTM,
convolution and patched bytes, which no other tool knows, are saved in the same way under a `model_type` of ours.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from groundup.core.errors import UserError
from groundup.core.files import read_object, write_json, write_tensors
from groundup.model import card as cards
from groundup.model import generation as generations
from groundup.model import weights
from groundup.model.base import LanguageModel, parameter_counts
from groundup.model.card import Card
from groundup.model.convolution import Convolution, ConvolutionConfig
from groundup.model.decoder import Decoder, RewardModel
from groundup.model.description import FAMILIES, describe, read_config, shape_of
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.origin import IDS, TRAINED_BY, Origin
from groundup.model.patches import PatchedBytes, PatchesConfig
from groundup.model.weights import shown
from groundup.tokenizer.tokenizer import Tokenizer

LARGEST_SETTING = 1e6  # NaN is none
OURS = {"groundup_lstm": LSTM, "groundup_convolution": Convolution, "groundup_patches": PatchedBytes}


def save(
    folder: Path, model: LanguageModel | RewardModel, tokenizer: Tokenizer, *, chat: bool, card: Card | None = None,
    dtype: str = "",
) -> None:  # fmt: skip
    """Write a model with its tokenizer and its card. `chat`: generation ends at the end of a message, not of a document.

    dtype: torch's name of the format of its weights on disk; if not given, that of the folder that it was loaded from.
    Raises UserError when the tokenizer has ids that the model has no embedding for, and where the format cannot hold a weight.
    """
    config = model.config if not dtype else replace(model.config, origin=replace(model.config.origin, dtype=dtype))
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the model {config.vocab_size}; "
            "save it with the tokenizer that it was trained with"
        )
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "ForSequenceClassification" if isinstance(model, RewardModel) else "ForCausalLM"
    if config.model_type in OURS:
        name, entries = OURS[config.model_type].__name__ + suffix, {**config.as_dict(), "dtype": config.origin.dtype}
    else:
        name, entries = FAMILIES[config.model_type] + suffix, describe(config)
    ids, generation = _special_ids(model, tokenizer, chat)
    description = {"architectures": [name], "model_type": config.model_type, **entries, **config.origin.trained_by, **ids}
    description["use_cache"] = True
    if isinstance(model, RewardModel):
        description |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    write_json(folder / "config.json", description)
    if isinstance(model, LanguageModel):
        write_json(folder / generations.FILE, generation)
    tokenizer.save(folder, model_max_length=config.max_position_embeddings, chat=chat)
    cards.write(folder, description, parameter_counts(model)["total"], chat, card or Card(), config.origin.card)
    save_weights(model, folder, config.origin.dtype)


def _special_ids(
    model: LanguageModel | RewardModel, tokenizer: Tokenizer, chat: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The special tokens' ids for config.json; and all of generation_config.json.

    A published model that still has its tokenizer keeps both as they were. But a chat model always stops at the end of a
    message, also where the model that it was trained from did not.
    """
    origin, end = model.config.origin, tokenizer.message_end
    if not tokenizer.foreign_files or origin.ids is None:
        begin_and_pad = {"bos_token_id": tokenizer.begin_of_text, "pad_token_id": tokenizer.pad}
        ends = [end, tokenizer.end_of_text] if chat else tokenizer.end_of_text
        ids = {**begin_and_pad, "eos_token_id": end if chat else tokenizer.end_of_text}
        return ids, {**begin_and_pad, "eos_token_id": ends, **origin.generation.sampling()}
    ids = dict(origin.ids)
    if isinstance(model, RewardModel) and ids.get("pad_token_id") is None:
        ids["pad_token_id"] = tokenizer.pad  # transformers finds a row's last token by it
    generation = origin.generation.stated
    generation = {**ids, **origin.generation.sampling()} if generation is None else dict(generation)
    if chat and end not in origin.generation.ends:
        for entries in (ids, generation):
            stated = entries.get("eos_token_id", list(origin.generation.ends))
            end_ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
            entries["eos_token_id"] = [end, *(token for token in end_ids if token != end)]
    return ids, generation


def save_weights(model: nn.Module, folder: Path, dtype_name: str = "float32") -> None:
    """Save the weights in this number format. Raises UserError where that cannot hold them."""
    dtype = getattr(torch, dtype_name)
    tensors = {name: parameter.detach().to("cpu", dtype).contiguous() for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        if dtype != torch.float32 and not tensor.isfinite().all():
            raise UserError(f"{folder}: {name} has numbers beyond {dtype_name}, the format that it is saved in")
    write_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})


def load_decoder(folder: Path) -> LanguageModel:
    """The causal language model of a folder, in float32, of the architecture that its `model_type` names.

    Raises UserError when something is missing, damaged or does not fit, or our architecture would compute it wrongly.
    """
    folder = Path(folder)
    model_class, config, description = _read(folder / "config.json")
    model = weights.build(model_class, config, folder, partial(_with_origin, config, description, folder))
    _load_all(model, folder)
    return model


def outline(folder: Path) -> LanguageModel:
    """The causal language model of a folder without its weights. Raises UserError where config.json is not that of one."""
    path = Path(folder) / "config.json"
    model_class, config, _ = _read(path)
    return weights.outline(model_class, config, str(path))


def load_reward_model(folder: Path) -> RewardModel:
    """The reward model of a folder. Raises UserError when it is not a complete sequence classifier with one label."""
    folder = Path(folder)
    model_class, config, description = _read(folder / "config.json")
    origin = partial(_with_origin, config, description, folder)
    reward_model = weights.build(lambda config: RewardModel(config, model_class(config).model), config, folder, origin)
    _load_all(reward_model, folder)
    return reward_model


def _read(path: Path) -> tuple[type[LanguageModel], Any, dict[str, Any]]:
    """The class and the configuration that a config.json describes, and its entries."""
    description = read_description(path)
    model_type = description.get("model_type")
    ours = isinstance(model_type, str) and model_type in OURS
    config = _read_our_config(description, path) if ours else read_config(description, path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = description.get(name)
        for token in value if isinstance(value, list) else [value]:
            # The first Llamas have -1 for "no padding".
            is_valid = token is None or (type(token) is int and -(name == "pad_token_id") <= token < config.vocab_size)
            if not is_valid:
                raise UserError(f"{path}: {name} is {shown(token)}; ids are 0 to {config.vocab_size - 1}")
    return OURS[model_type] if ours else Decoder, config, description


def read_description(path: Path) -> dict[str, Any]:
    """The entries of a config.json. Raises UserError where it is missing or damaged; of a run, it names one of its models."""
    if not path.is_file() and (models := sorted(path.parent.glob("*/config.json"))):
        raise UserError(f"{path}: no such file; models are in folders below it: name one of them, as {models[0].parent}")
    return read_object(path)


def _with_origin(config: Any, description: dict[str, Any], folder: Path) -> Any:
    """The configuration with the folder's `Origin`; `config` has been compared with the files."""
    origin = Origin(
        weights.format_of(weights.stored_tensors(folder)),
        _unused_ids(folder, config.vocab_size),
        {name: description[name] for name in IDS if name in description},
        {name: value for name in TRAINED_BY if _is_number(value := description.get(name))},
        generations.read(folder, config.vocab_size, description.get("eos_token_id")),
        cards.head_of(folder),
    )
    return replace(config, origin=origin)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and abs(value) <= LARGEST_SETTING


def _read_our_config(description: dict[str, Any], path: Path) -> LSTMConfig | ConvolutionConfig | PatchesConfig:
    model_type = description["model_type"]
    if model_type == "groundup_convolution" and description.get("kernel_size") == 1:
        raise UserError(f"{path}: kernel_size is 1; it must be 2 at least, or no token sees another")
    if model_type != "groundup_patches":
        return shape_of(LSTMConfig if model_type == "groundup_lstm" else ConvolutionConfig, description, path)
    parts = {}
    for name in ("across", "within"):
        if not isinstance(part := description.get(name), dict):
            raise UserError(f"{path}: {name} is {shown(part)}; it must be the shape of a decoder")
        parts[name] = read_config({"model_type": "qwen3"} | part, path)
    return shape_of(PatchesConfig, description | parts, path)


def load_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Fill `model`, which has a `config`, from the folder; returns the stored tensors that are no parameters of it, by name.

    Raises UserError for what is missing, damaged or of another shape.
    """
    _token_ids(folder, model.config.vocab_size)
    stored = weights.stored_tensors(folder)
    weights.check(model, stored, folder)
    parameters = dict(model.named_parameters())
    unknown: dict[str, Tensor] = {}
    for path in sorted({tensor.path for tensor in stored.values()}):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                if name not in parameters:
                    unknown[name] = file.get_tensor(name)
                    continue
                with torch.no_grad():
                    parameters[name].copy_(file.get_tensor(name))
                if not parameters[name].isfinite().all():
                    raise UserError(f"{path}: {name} has numbers that are not finite; download or train it again")
    return unknown


def _load_all(model: LanguageModel | RewardModel, folder: Path) -> None:
    for name, tensor in load_weights(model, folder).items():
        if name == "lm_head.weight":  # of a model whose head is its embedding: some store it twice
            if not torch.equal(tensor.float(), model.model.embed_tokens.weight):
                raise UserError(
                    f"{folder}: lm_head.weight is not the embedding, though config.json says tie_word_embeddings; "
                    "transformers would use it as it is: set tie_word_embeddings to false"
                )
        elif not name.endswith("rotary_emb.inv_freq"):  # the positions' frequencies follow from config.json
            model_type = model.config.model_type
            raise UserError(f"{folder}/model.safetensors: {name[:80]} is not a parameter of a {model_type} model")


def _unused_ids(folder: Path, vocabulary: int) -> tuple[int, ...]:
    """Ids that no token of the folder's tokenizer has: of Qwen's 151,936 ids 151,669 are used."""
    ids = _token_ids(folder, vocabulary)
    return tuple(sorted(set(range(vocabulary)) - ids)) if ids else ()


def _token_ids(folder: Path, vocabulary: int) -> set[int]:
    """Ids of the folder's tokenizer, empty if there is none. They may be fewer than the model's, never others."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return set()
    tokenizer = read_object(path)
    try:
        vocab = tokenizer["model"]["vocab"]
        ids = [*(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
        ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
        if not ids or any(type(token) is not int for token in ids):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not a tokenizer; download or train it again") from None
    for token in (max(ids), min(ids)):
        if not 0 <= token < vocabulary:
            raise UserError(
                f"{path}: a token has id {shown(token)}, the model has {vocabulary}: they are not of one folder"
            )
    return set(ids)

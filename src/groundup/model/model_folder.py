"""Hugging Face folders, in and out: what is written here is what `from_pretrained` and vLLM read.

Our modules already carry transformers' names, so there is no conversion: safetensors out, safetensors in. A reward
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
from groundup.model.origin import IDS, Origin
from groundup.model.patches import PatchedBytes, PatchesConfig
from groundup.model.weights import shown
from groundup.tokenizer.tokenizer import Tokenizer

OURS = {"groundup_lstm": LSTM, "groundup_convolution": Convolution, "groundup_patches": PatchedBytes}


def save(
    folder: Path, model: LanguageModel | RewardModel, tokenizer: Tokenizer, *, chat: bool, card: Card | None = None,
    dtype: str = "",
) -> None:  # fmt: skip
    """Write a model with its tokenizer and its card. `chat`: generation ends at the end of a message, not of a document.

    dtype: torch's name of the format of its weights on disk; if not given, that of the folder that it began with.
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
    description = {"architectures": [name], "model_type": config.model_type, **entries, **ids, "use_cache": True}
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
    """Of config.json the special tokens' ids; and the whole of generation_config.json.

    A model that came from elsewhere with its tokenizer keeps both as they were. But a chat model stops where a message
    ends, also one made of a model that did not.
    """
    origin, end = model.config.origin, tokenizer.message_end
    if not tokenizer.foreign_files or origin.ids is None:
        both = {"bos_token_id": tokenizer.begin_of_text, "pad_token_id": tokenizer.pad}
        ends = [end, tokenizer.end_of_text] if chat else tokenizer.end_of_text
        ids = {**both, "eos_token_id": end if chat else tokenizer.end_of_text}
        return ids, {**both, "eos_token_id": ends, **origin.generation.sampling()}
    ids = dict(origin.ids)
    if isinstance(model, RewardModel) and ids.get("pad_token_id") is None:
        ids["pad_token_id"] = tokenizer.pad  # by which transformers finds a row's last token
    generation = origin.generation.stated
    generation = {**ids, **origin.generation.sampling()} if generation is None else dict(generation)
    if chat and end not in origin.generation.ends:
        for entries in (ids, generation):
            found = entries.get("eos_token_id", list(origin.generation.ends))
            others = found if isinstance(found, list) else [] if found is None else [found]
            entries["eos_token_id"] = [end, *(token for token in others if token != end)]
    return ids, generation


def save_weights(model: nn.Module, folder: Path, name_of_format: str = "float32") -> None:
    """In this number format. Raises UserError where that cannot hold them."""
    dtype = getattr(torch, name_of_format)
    tensors = {name: one.detach().to("cpu", dtype).contiguous() for name, one in model.named_parameters()}
    for name, tensor in tensors.items():
        if dtype != torch.float32 and not tensor.isfinite().all():
            raise UserError(f"{folder}: {name} has numbers beyond {name_of_format}, the format that it is saved in")
    write_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})


def load_decoder(folder: Path) -> LanguageModel:
    """The causal language model of a folder, in float32: whichever of ours its `model_type` names.

    Raises UserError when something is missing, damaged or does not fit, or ours would compute it wrongly.
    """
    folder = Path(folder)
    kind, config, description = _read(folder / "config.json")
    model = weights.build(kind, config, folder, partial(_with_origin, config, description, folder))
    _load_all(model, folder)
    return model


def outline(folder: Path) -> LanguageModel:
    """The causal language model of a folder without its weights. Raises UserError where config.json is not that of one."""
    path = Path(folder) / "config.json"
    kind, config, _ = _read(path)
    return weights.outline(kind, config, str(path))


def load_reward_model(folder: Path) -> RewardModel:
    """Raises UserError when the folder is not a complete sequence classifier with one label."""
    folder = Path(folder)
    kind, config, description = _read(folder / "config.json")
    origin = partial(_with_origin, config, description, folder)
    reward_model = weights.build(lambda config: RewardModel(config, kind(config).model), config, folder, origin)
    _load_all(reward_model, folder)
    return reward_model


def _read(path: Path) -> tuple[type[LanguageModel], Any, dict[str, Any]]:
    """The class and the shape that a config.json describes, and its entries."""
    description = read_object(path)
    kind = description.get("model_type")
    ours = isinstance(kind, str) and kind in OURS
    config = _read_our_config(description, path) if ours else read_config(description, path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = description.get(name)
        for token in given if isinstance(given, list) else [given]:
            # The first Llamas have -1 for "no padding".
            right = token is None or (type(token) is int and -(name == "pad_token_id") <= token < config.vocab_size)
            if not right:
                raise UserError(f"{path}: {name} is {shown(token)}; ids are 0 to {config.vocab_size - 1}")
    return OURS[kind] if ours else Decoder, config, description


def _with_origin(config: Any, description: dict[str, Any], folder: Path) -> Any:
    """The configuration with what else the folder says of the model, whose sizes are known to be those of its files."""
    origin = Origin(
        weights.format_of(weights.stored(folder)),
        _without_token(folder, config.vocab_size),
        {name: description[name] for name in IDS if name in description},
        generations.read(folder, config.vocab_size, description.get("eos_token_id")),
        cards.head_of(folder),
    )
    return replace(config, origin=origin)


def _read_our_config(description: dict[str, Any], path: Path) -> LSTMConfig | ConvolutionConfig | PatchesConfig:
    kind = description["model_type"]
    if kind == "groundup_convolution" and description.get("kernel_size") == 1:
        raise UserError(f"{path}: kernel_size is 1; it must be 2 at least, or no token sees another")
    if kind != "groundup_patches":
        return shape_of(LSTMConfig if kind == "groundup_lstm" else ConvolutionConfig, description, path)
    parts = {}
    for name in ("across", "within"):
        if not isinstance(part := description.get(name), dict):
            raise UserError(f"{path}: {name} is {shown(part)}; it must be the shape of a decoder")
        parts[name] = read_config({"model_type": "qwen3"} | part, path)
    return shape_of(PatchesConfig, description | parts, path)


def load_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Fill `model`, which has a `config`, from the folder; returns the stored tensors that it has no place for, by name.

    Raises UserError for what is missing, damaged or of another shape.
    """
    _token_ids(folder, model.config.vocab_size)
    held = weights.stored(folder)
    weights.check(model, held, folder)
    parameters = dict(model.named_parameters())
    unknown: dict[str, Tensor] = {}
    for path in sorted({one.path for one in held.values()}):
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
            kind = model.config.model_type
            raise UserError(f"{folder}/model.safetensors: {name[:80]} has no place in a {kind} as we know it")


def _without_token(folder: Path, vocabulary: int) -> tuple[int, ...]:
    """Rows of the vocabulary that no token of the tokenizer beside the model has: Qwen's 151,936 rows have 151,669."""
    ids = _token_ids(folder, vocabulary)
    return tuple(sorted(set(range(vocabulary)) - ids)) if ids else ()


def _token_ids(folder: Path, vocabulary: int) -> set[int]:
    """Of the tokenizer beside the model, empty if there is none. It may have fewer ids than the model, never others."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return set()
    found = read_object(path)
    try:
        vocab = found["model"]["vocab"]
        ids = [*(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
        ids += [token["id"] for token in found.get("added_tokens") or []]
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

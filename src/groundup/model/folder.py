"""Hugging Face folders, in and out: what is written here is what `from_pretrained` and vLLM read.

Our modules already carry transformers' names, so there is no conversion: safetensors out, safetensors in. A reward
model is `Qwen3ForSequenceClassification` (or its family's) with one label; the others are `...ForCausalLM`. LSTM,
convolution and patched bytes, which no other tool knows, are saved in the same way under a `model_type` of ours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.files import read_json, read_object, write_json, write_tensors
from groundup.model.convolution import Convolution, ConvolutionConfig
from groundup.model.decoder import Decoder, DecoderConfig, LanguageModel, Scorer
from groundup.model.description import FAMILIES, describe, read_config, shape_of
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.patches import PatchedBytes, PatchesConfig
from groundup.tokenizer.tokenizer import Tokenizer

OURS = {"groundup_lstm": LSTM, "groundup_convolution": Convolution, "groundup_patches": PatchedBytes}


def save(folder: Path, model: LanguageModel | Scorer, tokenizer: Tokenizer, *, chat: bool) -> None:
    """Write a model with its tokenizer. `chat`: generation ends at the end of a message, not of a document.

    Raises UserError when the tokenizer has ids that the model has no embedding for.
    """
    config = model.config
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the model {config.vocab_size}; "
            "save it with the tokenizer that it was trained with"
        )
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "ForSequenceClassification" if isinstance(model, Scorer) else "ForCausalLM"
    if config.model_type in OURS:
        name, entries = OURS[config.model_type].__name__ + suffix, config.as_dict()
    else:
        name, entries = FAMILIES[config.model_type] + suffix, describe(config)
    description = {
        "architectures": [name],
        "model_type": config.model_type,
        **entries,
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.message_end if chat else tokenizer.end_of_text,
        "pad_token_id": tokenizer.pad,
        "use_cache": True,
    }
    if isinstance(model, Scorer):
        description |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    write_json(folder / "config.json", description)
    if isinstance(model, LanguageModel):
        ends = [tokenizer.message_end, tokenizer.end_of_text] if chat else tokenizer.end_of_text
        sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
        write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": tokenizer.pad, **sampling})
    tokenizer.save(folder, model_max_length=config.max_position_embeddings, chat=chat)
    save_weights(model, folder)


def save_weights(model: nn.Module, folder: Path) -> None:
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    write_tensors(folder / "model.safetensors", weights, metadata={"format": "pt"})


def load_decoder(folder: Path) -> LanguageModel:
    """The causal language model of a folder, in float32: whichever of ours its `model_type` names.

    Raises UserError when something is missing, damaged or does not fit, or ours would compute it wrongly.
    """
    model = _empty(Path(folder) / "config.json")
    _load_all(model, Path(folder))
    return model


def load_scorer(folder: Path) -> Scorer:
    """Raises UserError when the folder is not a complete sequence classifier with one label."""
    model = _empty(Path(folder) / "config.json")
    scorer = Scorer(model.config, model.model)
    _load_all(scorer, Path(folder))
    return scorer


def _empty(path: Path) -> LanguageModel:
    """A model of the shape that a config.json describes, whatever its weights."""
    description = read_object(path)
    kind = description.get("model_type")
    if isinstance(kind, str) and kind in OURS:
        return OURS[kind](_read_our_config(description, path))
    return Decoder(read_config(description, path))


def _read_our_config(description: dict[str, Any], path: Path) -> LSTMConfig | ConvolutionConfig | PatchesConfig:
    kind = description["model_type"]
    if kind != "groundup_patches":
        return shape_of(LSTMConfig if kind == "groundup_lstm" else ConvolutionConfig, description, path)
    parts = {}
    for name in ("across", "within"):
        if not isinstance(part := description.get(name), dict):
            raise UserError(f"{path}: {name} is {part!r}; it must be the shape of a decoder")
        parts[name] = shape_of(DecoderConfig, part, path)
    return shape_of(PatchesConfig, description | parts, path)


def load_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Fill `model`, which has a `config`, from the folder; returns the stored tensors that it has no place for, by name.

    Raises UserError for what is missing, damaged or of another shape.
    """
    _check_tokenizer(folder, model.config.vocab_size)
    absent = dict(model.named_parameters())
    unknown: dict[str, Tensor] = {}
    for path, name, tensor in _stored(folder):
        if name not in absent:
            unknown[name] = tensor
            continue
        parameter = absent.pop(name)
        if tensor.shape != parameter.shape:
            raise UserError(f"{path}: {name} should be {tuple(parameter.shape)}, is {tuple(tensor.shape)}")
        with torch.no_grad():
            parameter.copy_(tensor)
    if absent:
        name, parameter = next(iter(absent.items()))
        raise UserError(f"{folder}/model.safetensors: {name} should be {tuple(parameter.shape)}, is absent")
    return unknown


def _load_all(model: LanguageModel | Scorer, folder: Path) -> None:
    for name, tensor in load_weights(model, folder).items():
        if name == "lm_head.weight":  # of a model whose head is its embedding: some store it twice
            if not torch.equal(tensor.float(), model.model.embed_tokens.weight):
                raise UserError(
                    f"{folder}: lm_head.weight is not the embedding, though config.json says tie_word_embeddings; "
                    "transformers would use it as it is: set tie_word_embeddings to false"
                )
        elif not name.endswith("rotary_emb.inv_freq"):  # the positions' frequencies follow from config.json
            raise UserError(f"{folder}/model.safetensors: {name} has no place in a {model.config.model_type} as we know it")


def _stored(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of the folder, one at a time, with its file."""
    index = folder / "model.safetensors.index.json"
    paths = [folder / "model.safetensors"]
    if not paths[0].exists() and index.exists():
        try:
            paths = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: not an index of safetensors files; download it again") from None
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    yield path, name, file.get_tensor(name)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); download or train it again") from None


def _check_tokenizer(folder: Path, vocabulary: int) -> None:
    """The tokenizer beside the model, if there is one, may have fewer ids than the model, never more."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    found = read_json(path)
    try:
        vocab = found["model"]["vocab"]
        ids = [*(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
        largest = max([*ids, *(token["id"] for token in found.get("added_tokens", []))])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a tokenizer; download or train it again") from None
    if largest >= vocabulary:
        raise UserError(f"{path}: a token has id {largest}, the model has {vocabulary}: they are not of one folder")

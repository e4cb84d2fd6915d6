"""The headers of a folder's safetensors files, compared with the model before any tensor is read.

A header costs kilobytes, the tensors that a config.json asks for may cost terabytes. So names, shapes and number formats are
compared first, with a model on torch's `meta` device, which has shapes and no memory.
"""

import math
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from groundup.core.errors import UserError
from groundup.core.files import read_object
from groundup.core.plain_files import POINTER

FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # torch's names
SHOWN = 80  # characters of a foreign name or value in a message
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, by its header."""

    path: Path
    shape: tuple[int, ...]
    format: str


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder, by name. Raises UserError for files that are damaged, missing, or outside the folder."""
    tensors: dict[str, StoredTensor] = {}
    index = _index(folder)
    for path in sorted({folder / file for file in index.values()}) or [folder / "model.safetensors"]:
        _require_plain(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    if name in tensors:
                        raise UserError(f"{path}: {shown(name)} is in {tensors[name].path.name} too; download it again")
                    tensor_slice = file.get_slice(name)
                    tensors[name] = StoredTensor(path, tuple(tensor_slice.get_shape()), tensor_slice.get_dtype())
        except SafetensorError as error:
            with path.open("rb") as beginning:
                if beginning.read(len(POINTER)) == POINTER:
                    raise UserError(f"{path}: a pointer of Git LFS: get the weights themselves, by `git lfs pull`") from None
            reason = str(error)[:SHOWN]
            raise UserError(f"{path}: not a readable safetensors file ({reason}); download or train it again") from None
    for name, file in index.items():
        if name not in tensors or tensors[name].path != folder / file:
            raise UserError(f"{folder}: {shown(name)} is not in {file}, as the index says; download it again")
    return tensors


def _require_plain(path: Path) -> None:
    """Raises UserError for what is no plain file: a named pipe would wait for ever, a device never ends."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise UserError(f"{path}: no such file{_weights_instead(path.parent)}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a plain file")


def _weights_instead(folder: Path) -> str:
    """For a message: the other files with weights in a folder, and what to do."""
    if (folder / "model.safetensors.index.json").exists():
        return "; get the whole folder again"
    name_by_suffix = {path.suffix: path.name for path in sorted(folder.glob("*"), reverse=True)}
    if name := name_by_suffix.get(".safetensors"):
        return f"; there is {name[:SHOWN]}, without the index of its parts: get the whole folder again"
    if name := next(filter(None, map(name_by_suffix.get, (".bin", ".pt", ".pth"))), ""):
        return f"; there is {name[:SHOWN]}, pickled, which is never opened: get the weights as safetensors"
    return ""


def _index(folder: Path) -> dict[str, str]:
    """The file name of each tensor; empty where the weights are one file."""
    path = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not path.exists():
        return {}
    index = read_object(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise UserError(f"{path}: not an index of safetensors files; download it again")
    for file in index.values():
        if Path(file).name != file or len(file) > 200 or "\0" in file or not file.endswith(".safetensors"):
            raise UserError(f"{path}: names {shown(file)}, which is no safetensors file of this folder; download it again")
    return index


def build(make: Callable[[Any], Model], config: Any, folder: Path, final_config: Callable[[], Any]) -> Model:
    """`make(final_config())`, without values in its parameters yet, if the folder has tensors of the shapes of `config`.

    Raises UserError, before memory is allocated, when it has not, or when the sizes in config.json are no model.
    """
    stored = stored_tensors(folder)
    for shape in (config, getattr(config, "across", None), getattr(config, "within", None)):
        for name in ("num_hidden_layers", "num_experts"):  # each layer and each expert has at least one tensor
            if (size := getattr(shape, name, 0)) > len(stored):
                raise UserError(f"{folder}/config.json: {name} is {size}, but the files hold {len(stored)} tensors")
    check(outline(make, config, f"{folder}/config.json"), stored, folder)
    with _SkipInit():
        return make(final_config())


def outline(make: Callable[[Any], Model], config: Any, where: str) -> Model:
    """The model of this shape on torch's `meta` device, without memory. Raises UserError for sizes that are no model."""
    try:
        with torch.device("meta"), _SkipInit():
            return make(config)
    except (RuntimeError, ValueError, ArithmeticError, TypeError) as error:
        raise UserError(f"{where}: its sizes are those of no model ({str(error)[:SHOWN]})") from None


class _SkipInit(TorchFunctionMode):
    """Parameters are not initialised. Where a folder's values replace them, that would take seconds for each billion; on `meta`
    there are no values, and torch would import sympy for two seconds to find that out.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def format_of(stored: Mapping[str, StoredTensor]) -> str:
    """torch's name of the format that most numbers of a folder have; transformers loads them all in it."""
    sizes = Counter({"float32": 0})
    for tensor in stored.values():
        sizes[FORMATS.get(tensor.format, "float32")] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0]


def check(model: nn.Module, stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Raises UserError for the first parameter of `model` that the folder does not hold as floating-point numbers."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, tensor in stored.items():
        if tensor.shape != shapes.get(name, tensor.shape):
            raise UserError(f"{tensor.path}: {name} should be {shapes[name]}, is {str(tensor.shape)[:SHOWN]}")
        if name in shapes and tensor.format not in FORMATS:
            raise UserError(f"{tensor.path}: {name} is in {tensor.format}; weights are {', '.join(FORMATS)}")
    if missing := next((name for name in shapes if name not in stored), None):
        raise UserError(f"{folder}/model.safetensors: {missing} should be {shapes[missing]}, is absent")


def shown(value: object) -> str:
    """A foreign name or value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def digest_of_model(model: nn.Module) -> str:
    """A digest of the configuration and the weights of a model in memory."""
    digest = blake2b(repr(getattr(model, "config", "")).encode(), digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

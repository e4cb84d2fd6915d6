"""What a folder's safetensors files say that they hold, read before any of it is believed.

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
class Stored:
    """One tensor of a file, by its header."""

    path: Path
    shape: tuple[int, ...]
    format: str


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, by name. Raises UserError for files that are damaged, missing, or outside the folder."""
    found: dict[str, Stored] = {}
    index = _index(folder)
    for path in sorted({folder / file for file in index.values()}) or [folder / "model.safetensors"]:
        _require_plain(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    if name in found:
                        raise UserError(f"{path}: {shown(name)} is in {found[name].path.name} too; download it again")
                    part = file.get_slice(name)
                    found[name] = Stored(path, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            with path.open("rb") as begin:
                if begin.read(len(POINTER)) == POINTER:
                    raise UserError(f"{path}: a pointer of Git LFS: get the weights themselves, by `git lfs pull`") from None
            reason = str(error)[:SHOWN]
            raise UserError(f"{path}: not a readable safetensors file ({reason}); download or train it again") from None
    for name, file in index.items():
        if name not in found or found[name].path != folder / file:
            raise UserError(f"{folder}: {shown(name)} is not in {file}, as the index says; download it again")
    return found


def _require_plain(path: Path) -> None:
    """A named pipe would wait for ever, a device never ends."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise UserError(f"{path}: no such file{_there_instead(path.parent)}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a plain file")


def _there_instead(folder: Path) -> str:
    """What other files hold the weights of a folder, and what to do."""
    if (folder / "model.safetensors.index.json").exists():
        return "; get the whole folder again"
    found = {path.suffix: path.name for path in sorted(folder.glob("*"), reverse=True)}
    if name := found.get(".safetensors"):
        return f"; there is {name[:SHOWN]}, without the index of its parts: get the whole folder again"
    if name := next(filter(None, map(found.get, (".bin", ".pt", ".pth"))), ""):
        return f"; there is {name[:SHOWN]}, pickled, which is never opened: get the weights as safetensors"
    return ""


def _index(folder: Path) -> dict[str, str]:
    """By tensor the name of its file; empty where the weights are one file."""
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


def build(make: Callable[[Any], Model], config: Any, folder: Path, checked: Callable[[], Any]) -> Model:
    """What `make` makes of what `checked` returns, once the folder is known to hold tensors of the shapes of `config`: its
    parameters have no values yet.

    Raises UserError, before memory is asked for, when it does not, or when the sizes in config.json are no model.
    """
    held = stored(folder)
    for part in (config, getattr(config, "across", None), getattr(config, "within", None)):
        for name in ("num_hidden_layers", "num_experts"):  # a layer and an expert have a tensor each at least
            if (size := getattr(part, name, 0)) > len(held):
                raise UserError(f"{folder}/config.json: {name} is {size}, but the files hold {len(held)} tensors")
    check(outline(make, config, f"{folder}/config.json"), held, folder)
    with _Unfilled():
        return make(checked())


def outline(make: Callable[[Any], Model], config: Any, where: str) -> Model:
    """The model of this shape on torch's `meta` device, without memory. Raises UserError for sizes that are no model."""
    try:
        with torch.device("meta"), _Unfilled():
            return make(config)
    except (RuntimeError, ValueError, ArithmeticError, TypeError) as error:
        raise UserError(f"{where}: its sizes are those of no model ({str(error)[:SHOWN]})") from None


class _Unfilled(TorchFunctionMode):
    """Parameters get no first values. Where a folder's replace them, making them takes seconds for each billion; without memory
    there are none, and to find that out torch imports sympy for two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def format_of(held: Mapping[str, Stored]) -> str:
    """torch's name of the format that most numbers of a folder have, which transformers brings them all to."""
    sizes = Counter({"float32": 0})
    for one in held.values():
        sizes[FORMATS.get(one.format, "float32")] += math.prod(one.shape)
    return sizes.most_common(1)[0][0]


def check(model: nn.Module, held: Mapping[str, Stored], folder: Path) -> None:
    """Raises UserError for the first parameter of `model` that the folder does not hold as floating-point numbers."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, found in held.items():
        if found.shape != wanted.get(name, found.shape):
            raise UserError(f"{found.path}: {name} should be {wanted[name]}, is {str(found.shape)[:SHOWN]}")
        if name in wanted and found.format not in FORMATS:
            raise UserError(f"{found.path}: {name} is in {found.format}; weights are {', '.join(FORMATS)}")
    if absent := next((name for name in wanted if name not in held), None):
        raise UserError(f"{folder}/model.safetensors: {absent} should be {wanted[absent]}, is absent")


def shown(value: object) -> str:
    """A foreign name or value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def digest_of_model(model: nn.Module) -> str:
    """Of the shape and the weights of a model in memory."""
    every = blake2b(repr(getattr(model, "config", "")).encode(), digest_size=16)
    for name, parameter in model.named_parameters():
        every.update(name.encode())
        every.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return every.hexdigest()

"""What a model's name stands for: a run, a folder that groundup reads, one that only transformers reads, a server's address, or
the n-gram model of a run's tokens."""

from pathlib import Path
from typing import NamedTuple

import tokenizers

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.core.seals import MANIFEST
from groundup.evaluation.evaluated_models import EvaluatedModel, FolderModel
from groundup.evaluation.ngram_model import NGRAM, NgramModel, key_of
from groundup.evaluation.served_models import RemoteModel
from groundup.evaluation.tasks import Task
from groundup.evaluation.transformers_models import open_by_transformers
from groundup.generation.open_folder import model_folder
from groundup.model.model_folder import load_decoder
from groundup.tokenizer.hf_tokenizer import ids_before
from groundup.tokenizer.load import load as load_tokenizer

TRANSFORMERS, ADDRESSES = "hf:", ("http://", "https://")


class Identity(NamedTuple):
    """`where`: its folder or its server's address; `key`: what tells it from any other model, such as digests of its files."""

    where: str
    key: dict[str, str]


def identify(name: str) -> Identity:
    """Without opening it. Raises UserError where there is no such folder."""
    if name.startswith(ADDRESSES):
        return Identity(name, {"address": name})
    if name.startswith(NGRAM):
        return Identity(name, key_of(name))
    folder = Path(name.removeprefix(TRANSFORMERS)) if name.startswith(TRANSFORMERS) else _folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there; give the folder of a model")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model"))
    identifying = [path for path in files if path.suffix != ".json" or path.name in ("config.json", "tokenizer.json")]
    return Identity(str(folder), {path.name: digest(path) for path in identifying})


def can_be_asked(name: str, task: Task) -> bool:
    """Whether a model can do the task: only models that groundup computes can sample."""
    return task.settings.kind != "toxicity" or not name.startswith((*ADDRESSES, NGRAM, TRANSFORMERS))


def open_model(name: str) -> EvaluatedModel:
    """The model of a run (its dpo stage, or its last one before that), of a stage, or of any model's folder. `hf:FOLDER` is one
    that transformers reads, `http://host/v1#model` one of a server, `ngram:RUN` the n-gram model of a run's training tokens.

    Raises UserError where there is none, or none that can be read in that way.
    """
    if name.startswith(ADDRESSES):
        return RemoteModel(name)
    if name.startswith(NGRAM):
        return NgramModel(name)
    if name.startswith(TRANSFORMERS):
        return open_by_transformers(name, Path(name.removeprefix(TRANSFORMERS)))
    folder = _folder(name)
    tokenizer = load_tokenizer(folder)
    if not hasattr(tokenizer, "end_of_text"):
        raise UserError(f"{folder}: its tokenizer has no token that ends a text, so it is not that of a language model")
    model = load_decoder(folder).to(choose().torch_device).eval()
    return FolderModel(name, folder, model, tokenizer, opening_of(folder))


def _folder(name: str) -> Path:
    finished = [stage for stage in ("dpo", "sft", "base") if (Path(name) / stage / MANIFEST).is_file()]
    return model_folder(Path(name), finished[0] if finished else None)


def opening_of(folder: Path) -> list[int]:
    """Ids that a folder's tokenizer puts before every text: what lm-eval and transformers put there."""
    backend = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return ids_before(backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids)

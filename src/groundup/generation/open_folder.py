"""The model of a folder: a run's, or the folder's own; for any other folder, a message that says what it is and what to do."""

import json
from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.files import read_object
from groundup.core.plain_files import hub_advice
from groundup.core.seals import MANIFEST, open_stage, verify

STAGES = ("base", "sft", "dpo", "ppo")
DEFAULT = "dpo"
EXPECTED = "the folder of a run or of a model (config.json, *.safetensors, tokenizer.json)"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def model_folder(folder: Path, stage: str | None = None) -> Path:
    """The folder of the model to talk to, checked if a run made it. `stage`: which model of a run.

    Raises UserError, with what the folder is and what to do, where there is no model that writes text.
    """
    if stage is not None and stage not in (known := [*STAGES, *_added_models(folder)]):
        raise UserError(f"stage {stage}: choose one of {', '.join(known)}"[:300])
    if not (folder / "config.json").is_file():
        return _of_run(folder, stage)
    if stage is not None:
        raise UserError(f"{folder}: a model's folder, which has no stages: name none, or give the run's folder")
    kinds = read_object(folder / "config.json").get("architectures")
    architecture = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    if architecture.endswith("ForQuestionAnswering"):
        raise UserError(f"{folder}: a model for question answering, which writes no text: use it with `groundup ask`")
    if architecture.endswith("ForSequenceClassification"):
        raise UserError(f"{folder}: a reward model or classifier, which scores texts and writes none; give a ...ForCausalLM")
    verify(folder)
    return folder


def single_model(folder: Path) -> Path:
    """As `model_folder`, but raises UserError for a run, which has several models."""
    stages = [stage for stage in STAGES if (folder / stage / "config.json").is_file()]
    if stages and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: a run, which has several models; name one of them, as {folder / stages[-1]}")
    return model_folder(folder)


def _of_run(folder: Path, stage: str | None) -> Path:
    finished = [name for name in [*_added_models(folder), *reversed(STAGES)] if (folder / name / MANIFEST).is_file()]
    wanted = stage or DEFAULT
    if wanted in finished:
        return open_stage(folder, wanted)
    if finished:
        message = f"no finished stage {wanted!r} there, but {finished[0]}"
        raise UserError(f"{folder}: {message}; give {folder / finished[0]}, or have `groundup run` make the rest")
    if stage is not None or any((folder / f"{name}.partial").is_dir() for name in ("pages", "corpus", "tokenizer", *STAGES)):
        return open_stage(folder, wanted)  # raises UserError with what is missing of the run
    raise UserError(f"{folder}: {_description(folder)}; give {EXPECTED}")


def _added_models(folder: Path) -> list[str]:
    """Names of the steps that a recipe added and that made a model that writes text."""
    names = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if path.parent.name not in STAGES)
    kinds = {name: folder / name / "config.json" for name in names if (folder / name / "config.json").is_file()}
    return [name for name, config in kinds.items() if "ForCausalLM" in str(read_object(config).get("architectures"))]


def _description(folder: Path) -> str:
    """What a folder without config.json and without a finished model is."""
    if not folder.exists():
        return f"no such folder{hub_advice(folder)}"
    if not folder.is_dir():
        kind = "a GGUF, which is not read" if folder.suffix == ".gguf" else "a file"
        return f"{kind}; give the folder of its safetensors" if folder.suffix == ".gguf" else f"{kind}, not a folder"
    models = [path.parent for pattern in ("*/config.json", "snapshots/*/config.json") for path in sorted(folder.glob(pattern))]
    models += [path.parents[1] for path in sorted(folder.glob(f"*/*/{MANIFEST}")) if path.parent.name in STAGES]
    if models:
        return f"models are in folders below it, as {models[0]}"
    if (folder / "adapter_config.json").is_file():
        return "an adapter (LoRA), which needs its base model: merge it into that first (peft: merge_and_unload)"
    if any(folder.glob("*.gguf")):
        return "a GGUF, which is not read: get the same model as safetensors"
    if (folder / MANIFEST).is_file():  # before pickles: token files are named .bin too
        return f"stage {_stage_name(folder)} of a run, which is no model: give {folder.parent}"
    if any(folder.glob("*.safetensors")):
        return "weights without their config.json: get it from where they came from"
    if any(path for pattern in PICKLED for path in folder.glob(pattern)):
        return "pickled weights, which are never opened, and no config.json: get them as safetensors"
    if (folder / "tokenizer.json").is_file():
        return "a tokenizer without a model"
    if any(folder.glob("*.parquet")) or any(folder.glob("*.warc.gz")) or (folder / "corpus").is_dir():
        return "documents, not a model: `groundup run RECIPE` trains one on them"
    return "an empty folder" if not any(folder.iterdir()) else "neither of a run nor of a model"


def _stage_name(folder: Path) -> str:
    try:
        return str(read_object(folder / MANIFEST).get("stage"))[:40]
    except (UserError, json.JSONDecodeError):
        return folder.name

"""What a step reads of the steps before it: documents, tokenizer, model; and whether one was skipped.

torch is imported where it is used, so that `groundup run --dry-run` and a finished run do not wait for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.seals import MANIFEST, read_manifest
from groundup.pipeline.run import StepContext

if TYPE_CHECKING:
    from groundup.core.device import Device
    from groundup.model.decoder import Decoder
    from groundup.tokenizer.tokenizer import Tokenizer
    from groundup.training.runtime import Runtime

Results = dict[str, Any]


def documents_of(context: StepContext, split: str | None = None) -> list[dict[str, Any]]:
    from groundup.corpus.tables import read_table

    rows = read_table(context.inputs["corpus"] / "documents.parquet").to_pylist()
    return [row for row in rows if split is None or row["split"] == split]


def tokenizer_of(context: StepContext) -> "Tokenizer":
    from groundup.tokenizer.load import for_run

    return for_run(context.inputs["tokenizer"], context.recipe.continued)


def model_of(context: StepContext, stage: str) -> "Decoder":
    from groundup.model.model_folder import load_decoder

    return load_decoder(context.inputs[stage]).to(device_of(context).torch_device)


def device_of(context: StepContext) -> "Device":
    from groundup.core.device import choose

    return choose(context.recipe.threads)


def workers_of(context: StepContext) -> int:
    from groundup.core.executor import cores

    return context.recipe.threads or cores()


def runtime_of(context: StepContext) -> "Runtime":
    from groundup.training.runtime import Runtime

    return Runtime(device_of(context), context.work, context.name, context.recipe.seed, context.log)


@contextmanager
def all_processes(context: StepContext, shard: bool = False) -> "Iterator[Runtime]":
    """Inside of it all of torchrun's processes train: the first calls the others, which enter it too.

    Only the first logs and writes.
    """
    from groundup.training import parallel

    runtime = runtime_of(context)  # sets the threads, which the processes then share
    parallel.call(context.name)
    processes = parallel.start(shard)
    yield replace(runtime, processes=processes, log=context.log if processes.first else lambda text: None)
    processes.end()


def train_and_save_pretrained(context: StepContext, settings: Any, train: "Callable[[Runtime], Any]") -> Results:
    """Train with all processes by `train`, which returns the model and its results; save the model, return the results."""
    from groundup.model import model_folder
    from groundup.pipeline.model_cards import pretrained
    from groundup.training import checkpoint

    with all_processes(context, settings.shard) as runtime:
        model, results = train(runtime)
    if runtime.processes.first:
        wanted = context.recipe.annotations.wanted_languages
        card = pretrained(results, wanted[0] if len(wanted) == 1 else "")
        model_folder.save(context.work, model, tokenizer_of(context), chat=False, card=card, dtype=settings.save_dtype)
        checkpoint.clear(runtime.training)
    return {**results, "device": runtime.device.name}


def skip(context: StepContext, reason: str) -> Results:
    """The results of a stage that has nothing to work on; the reason is logged, and the run continues."""
    context.log(f"{context.name} is skipped: {reason}")
    return {"skipped": reason}


def reason_skipped(context: StepContext, need: str) -> str:
    """Why the step of an input was skipped; "" if it was not, or if the input is a user's own folder."""
    return was_skipped(context.inputs[need])


def was_skipped(folder: Path) -> str:
    """Why the step of this folder was skipped; "" if it was not, or if it is no step's."""
    return read_manifest(folder)["results"].get("skipped", "") if (folder / MANIFEST).is_file() else ""

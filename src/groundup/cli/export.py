"""The verb `export`."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import result
from groundup.core.errors import UserError


def export(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a model's.")],
    out: Annotated[Path, typer.Option(help="The file to write, as model.gguf.")],
    kind: Annotated[str, typer.Option("--type", help="How matrices are stored: f32, f16, bf16 or q8_0.")] = "f16",
    stage: Annotated[str | None, typer.Option(help="Which model of a run: base, sft, dpo (if not given) or ppo.")] = None,
) -> None:
    """Write a model as a GGUF file, for llama.cpp and what is built on it."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("export needs one more library: pip install 'groundup[gguf]'") from None
    from groundup.serving.gguf_file import export as write

    result(write(folder, out, kind, stage))

"""The command `export`."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import new_file, result
from groundup.core.errors import UserError

FORMATS = ("gguf", "tiktoken")


def export(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a model's.")],
    out: Annotated[Path, typer.Option(callback=new_file, help="The file to write, as model.gguf or name.tiktoken.")],
    to: Annotated[str, typer.Option(help="gguf: the model; tiktoken: its tokenizer.")] = "gguf",
    kind: Annotated[
        str | None, typer.Option("--type", help="How matrices of a GGUF are stored: f32, f16 (if not given), bf16 or q8_0.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Which model of a run: base, sft, dpo (if not given), ppo, or an added step by name.")
    ] = None,
) -> None:
    """Write a model as a GGUF file, for llama.cpp and what is built on it, or its tokenizer for tiktoken."""
    if to not in FORMATS:
        raise UserError(f"--to {to[:40]}: choose {' or '.join(FORMATS)}")
    if to == "tiktoken":
        from groundup.generation.open_folder import model_folder
        from groundup.tokenizer.tiktoken_file import export as write_tokenizer

        if kind is not None:
            raise UserError("--type: for a GGUF only; a tokenizer has no matrices")
        return result(write_tokenizer(model_folder(folder, stage), out))
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("export needs one more library: pip install 'groundup[gguf]'") from None
    from groundup.serving.gguf_file import export as write

    return result(write(folder, out, kind or "f16", stage))

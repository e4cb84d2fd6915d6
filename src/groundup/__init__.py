"""groundup: a language model from the ground up; raw web pages in, a chat model out, every stage measured.

The names in `__all__` are what Python programs use (`groundup.api`). Each is imported on its first use, so that a program
that needs only a chapter does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundup.api import (
        Model,
        PreferenceModel,
        RunView,
        Tokenizer,
        UserError,
        dpo,
        evaluate,
        load,
        load_tokenizer,
        open_run,
        pretrain,
        reward,
        sft,
        train_tokenizer,
    )
else:  # hidden from type checkers, which would take every name to exist

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'groundup' has no attribute {name!r}; it has {', '.join(__all__)}")
        from importlib import import_module

        return getattr(import_module("groundup.api"), name)


__version__ = "0.1.0"
__all__ = [
    "Model",
    "PreferenceModel",
    "RunView",
    "Tokenizer",
    "UserError",
    "__version__",
    "dpo",
    "evaluate",
    "load",
    "load_tokenizer",
    "open_run",
    "pretrain",
    "reward",
    "sft",
    "train_tokenizer",
]


def __dir__() -> list[str]:
    return sorted(__all__)

"""A server of a chat model and a base model, toys both."""

import pytest

pytest.importorskip("fastapi", reason="needs the `serve` extra")

from groundup.model import model_folder as folders
from groundup.serving.loaded_models import Capacity, open_all


@pytest.fixture(scope="session")
def served_folders(tmp_path_factory, toy_decoder, toy_tokenizer):
    """A chat model and a base model."""
    found = {}
    for number, name in enumerate(("chat", "base")):
        found[name] = tmp_path_factory.mktemp("served") / name
        model = toy_decoder(seed=number, vocab_size=toy_tokenizer.size, max_position_embeddings=256)
        folders.save(found[name], model, toy_tokenizer, chat=name == "chat")
    return found


@pytest.fixture(scope="session")
def models(served_folders):
    return open_all([str(path) for path in served_folders.values()], Capacity(slots=8, waiting=200))


@pytest.fixture(scope="session")
def address(models, listening):
    with listening(models) as address:
        yield address

import pytest

from groundup.model import model_folder


@pytest.fixture
def saved(toy_decoder, toy_tokenizer, tmp_path):
    """A random decoder of a shape, and its folder."""

    def make(**shape):
        model = toy_decoder(seed=1, vocab_size=toy_tokenizer.size, **shape)
        model_folder.save(tmp_path / "model", model, toy_tokenizer, chat=True)
        return model, tmp_path / "model"

    return make

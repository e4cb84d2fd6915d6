"""A published folder behind our server's address is scored as the folder itself: the server's tokens and offsets are right."""

import sys
from pathlib import Path

import pytest

from groundup.data.messages import BadRow
from groundup.evaluation.open_model import open_model
from groundup.serving.loaded_models import Capacity, open_all

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
from other_makers import publish

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
pytest.importorskip("fastapi", reason="needs the `serve` extra")
NAMES = ("llama3", "qwen", "mistral", "gemma", "gpt2")
PAIRS = [
    ("The cat", " sat"), ("The cat ", "sat"), ("The cat", "sat"), ("naïve 🙂", " façade"), ("x\n\n", "y"), ("a 🙂", "🙂"),
    ("漢", "漢字かな x"), ("<s> a", " </s>"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: publish(tmp_path_factory.mktemp("served") / name, name) for name in NAMES}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    for path in made.values():
        vocabulary = len(transformers.AutoTokenizer.from_pretrained(path))
        config = transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=128, initializer_range=0.3, **sizes)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return made


@pytest.fixture(scope="module")
def address(folders, listening):
    with listening(open_all([str(path) for path in folders.values()], Capacity(slots=4))) as address:
        yield address


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_folder(name, folders, address):
    ours, remote = (open_model(model).continuations(PAIRS, 4) for model in (str(folders[name]), f"{address}/v1#{name}"))
    for pair, one, other in zip(PAIRS, ours, remote, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-3) and one.tokens == other.tokens, pair


def test_offsets_of_another_text_are_not_trusted(folders, address):
    """Qwen's tokenizer composes letters, so what the server echoes is shorter than the prompt."""
    [answer] = open_model(f"{address}/v1#qwen").continuations([("cafe\u0301 e\u0301", " e\u0301 x")], 1)
    assert isinstance(answer, BadRow) and "do not spell the prompt" in str(answer)

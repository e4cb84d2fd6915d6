"""lm-eval, asking our server as it would OpenAI's, finds what it finds in the folder and what we find ourselves."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENAI_API_KEY", "none")
pytest.importorskip("lm_eval", reason="needs the `test` extra")
pytest.importorskip("fastapi", reason="needs the `serve` extra")
pytest.importorskip("tenacity", reason="needs lm-eval's `api` extra")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from groundup.evaluation.suite import continuations
from groundup.model import model_folder
from groundup.model.likelihood import score
from groundup.serving.loaded_models import Capacity, open_all

PAIRS = [
    ("what does the function return", " the path"), ("Answer:", " A"), ("Answer:", " the file"), ("it returns \n", "the file"),
    ("def path(file):\n    return", " file\n"), ("漢字 é", " path é"), ("the path " * 15, "of it"),
]  # fmt: skip


@pytest.fixture(scope="module")
def three(toy_decoder, toy_tokenizer, tmp_path_factory, listening):
    """Our model, lm-eval's of the same folder, and lm-eval's of our server."""
    path = tmp_path_factory.mktemp("model") / "base"
    model = toy_decoder(seed=1, vocab_size=toy_tokenizer.size, max_position_embeddings=128)
    model_folder.save(path, model, toy_tokenizer, chat=False)
    with listening(open_all([str(path)], Capacity())) as address:
        # Left to itself it begins no text with the first token that our folder states; `hf` does.
        settings = {"tokenizer_backend": "huggingface", "tokenizer": str(path), "add_bos_token": True}
        served = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions", model="base", batch_size=3, max_length=128, **settings
        )
        yield model, HFLM(str(path), device="cpu", dtype="float32"), served


def asked(kind, requests):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in requests]


def test_choices(three, toy_tokenizer):
    model, theirs, served = three
    found = served.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [nats for nats, _ in found] == pytest.approx(continuations(model, toy_tokenizer, PAIRS), abs=1e-4)


def test_rolling(three, toy_tokenizer, monkeypatch):
    model, theirs, served = three
    texts = [("the path",), ("it returns the path of the file\n" * 2,), ("what does the function return " * 20,)]
    found = served.loglikelihood_rolling(asked("loglikelihood_rolling", texts), disable_tqdm=True)
    theirs._max_length = 126  # of a server it takes two tokens less: for the first, and for one that is generated
    expected = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=2e-4)
    # Told to begin no text with a token of its own it predicts from that token, as we evaluate texts that fit in one window.
    monkeypatch.setattr(served, "add_bos_token", False)
    found = served.loglikelihood_rolling(asked("loglikelihood_rolling", texts[:2]), disable_tqdm=True)
    whole = [[toy_tokenizer.begin_of_text, *toy_tokenizer.encode(text)] for (text,) in texts[:2]]
    assert found == pytest.approx([float(nats.sum()) for nats in score(model, whole)], abs=1e-4)


def test_generation(three):
    _, theirs, served = three
    until = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    requests = [(text, until) for text in ("the path", "it returns the", "a")]
    found = served.generate_until(asked("generate_until", requests), disable_tqdm=True)
    assert found == theirs.generate_until(asked("generate_until", requests), disable_tqdm=True) and any(found)


def test_chat(toy_decoder, toy_tokenizer, tmp_path, listening):
    """With the chat template applied: by our server, and by transformers from the folder."""
    path = tmp_path / "chat"
    toy = toy_decoder(seed=1, vocab_size=toy_tokenizer.size, max_position_embeddings=128)
    model_folder.save(path, toy, toy_tokenizer, chat=True)
    theirs = HFLM(str(path), device="cpu", dtype="float32")
    talks = [
        [{"role": "user", "content": "what does the function return"}], [{"role": "user", "content": "the path"}],
        [{"role": "system", "content": "a file"}, {"role": "user", "content": "it returns"}],
    ]  # fmt: skip
    until = {"until": ["\n\n", "file"], "max_gen_toks": 8, "do_sample": False}
    with listening(open_all([str(path)], Capacity())) as address:
        served = LocalChatCompletion(base_url=f"{address}/v1/chat/completions", model="chat", max_retries=1)
        requests = [(served.apply_chat_template(talk), until) for talk in talks]
        found = served.generate_until(asked("generate_until", requests), disable_tqdm=True)
        older = [[{**message, "type": "text"} for message in talk] for talk in talks]  # as older versions of lm-eval send them
        requests = [(served.apply_chat_template(talk), until) for talk in older]
        assert served.generate_until(asked("generate_until", requests), disable_tqdm=True) == found
    requests = [(theirs.apply_chat_template(talk), until) for talk in talks]
    assert found == theirs.generate_until(asked("generate_until", requests), disable_tqdm=True) and any(found)

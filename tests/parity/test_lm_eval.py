"""What lm-eval measures of a folder of ours is what we measure: likelihoods, rolling likelihoods, answers."""

import os

import pytest

from groundup.evaluation.suite import continuations, encode_pair
from groundup.generation.engine import Sampling, generate
from groundup.model import model_folder
from groundup.model.likelihood import score
from groundup.posttraining.batches import prompt_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
pytest.importorskip("lm_eval", reason="needs the `test` extra")
pytest.importorskip("transformers", reason="needs the `test` extra")
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

CLOSE = 1e-4
PAIRS = [
    ("what does the function return", " the path"),
    ("Answer:", " A"),
    ("Answer: ", "A"),
    ("it returns \n", "the file"),
    ("", "the path of the file"),
    ("def path(file):\n    return", " file\n"),
    ("漢字 é", " path é"),
]


@pytest.fixture(scope="module", params=["base", "sft"])
def both(request, toy_decoder, toy_tokenizer, tmp_path_factory):
    """Our model, and lm-eval's of the same folder."""
    path = tmp_path_factory.mktemp("model") / request.param
    model = toy_decoder(seed=1, vocab_size=toy_tokenizer.size)
    model_folder.save(path, model, toy_tokenizer, chat=request.param == "sft")
    return model, HFLM(str(path), device="cpu", dtype="float32", batch_size=3)


def asked(kind, requests):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in requests]


def test_ids_of_pairs(both, toy_tokenizer):
    _, theirs = both
    for context, continuation in PAIRS:
        if context:  # it refuses an empty one here, and puts the first token itself
            assert theirs._encode_pair(context, continuation) == encode_pair(toy_tokenizer, context, continuation)


def test_where_a_token_spans_the_border_it_loses_it_and_we_do_not(both, toy_tokenizer):
    model, theirs = both
    context, continuation = "the fi", "le"
    assert len(toy_tokenizer.encode("the file")) <= len(toy_tokenizer.encode("the fi"))
    assert theirs._encode_pair(context, continuation)[1] == []
    assert continuations(model, toy_tokenizer, [(context, continuation)])[0] < 0


def test_log_likelihoods(both, toy_tokenizer):
    model, theirs = both
    found = [nats for nats, _ in theirs.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)]
    assert continuations(model, toy_tokenizer, PAIRS) == pytest.approx(found, abs=CLOSE) and max(found) < -1


def test_rolling_log_likelihoods(both, toy_tokenizer):
    """It puts the first token before a text that has it already: one prediction more than ours, of that token."""
    model, theirs = both
    texts = ["the path", "it returns the path of the file\n" * 2, "what does the function return " * 20]
    found = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)
    first = toy_tokenizer.end_of_text
    context = model.config.max_position_embeddings
    for text, theirs_of in zip(texts, found, strict=True):
        ids = [first, *toy_tokenizer.encode(text)]
        windows = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, first, context, context_len=1))
        by_window = [score(model, [before + after])[0][-len(after) :].sum() for before, after in windows]
        assert sum(by_window) == pytest.approx(theirs_of, abs=CLOSE)
        if len(ids) < context:
            assert score(model, [[first, *ids]])[0].sum() == pytest.approx(theirs_of, abs=CLOSE)
    assert len(ids) > 2 * context
    # Told to add nothing, it has one such token, and a text that fits has our likelihood.
    theirs.add_bos_token = False
    try:
        found = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)
    finally:
        theirs.add_bos_token = None
    ours = [score(model, [[first, *toy_tokenizer.encode(text)]])[0].sum() for text in texts]
    assert ours[:2] == pytest.approx(found[:2], abs=CLOSE) and ours[2] != pytest.approx(found[2], abs=0.1)


def test_answers(both, toy_tokenizer):
    model, theirs = both
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False}
    contexts = ["what does the function return", "the", "def path(file):\n"]
    found = theirs.generate_until(asked("generate_until", [(one, dict(settings)) for one in contexts]), disable_tqdm=True)
    prompts = [[toy_tokenizer.end_of_text, *toy_tokenizer.encode(one)] for one in contexts]
    ours = generate(model, prompts, [theirs.eot_token_id], Sampling(12, temperature=0), 0)
    assert [toy_tokenizer.decode(ids) for ids in ours] == found and all(found)


def test_answers_in_the_chat_format(both, toy_tokenizer):
    model, theirs = both
    questions = ["what does the function return", "path"]
    rendered = [theirs.apply_chat_template([{"role": "user", "content": one}]) for one in questions]
    prompts = [prompt_of(toy_tokenizer, one) for one in questions]
    ids, attention = theirs.tok_batch_encode(rendered)
    assert [row[seen == 1].tolist() for row, seen in zip(ids, attention, strict=True)] == prompts
    assert [theirs.tok_encode(one) for one in rendered] == prompts
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False}
    found = theirs.generate_until(asked("generate_until", [(one, dict(settings)) for one in rendered]), disable_tqdm=True)
    ours = generate(model, prompts, [theirs.eot_token_id], Sampling(12, temperature=0), 0)
    assert [toy_tokenizer.decode(ids) for ids in ours] == found

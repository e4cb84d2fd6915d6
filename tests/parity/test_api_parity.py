"""What Python programs are told of a folder that transformers made is what transformers computes of it."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import groundup

sys.path.insert(0, str(Path(__file__).parent))
from test_continuing import publish

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()

PAIRS = [("what is a", " path"), ("the function returns", " the path of the file"), ("", "it returns"), ("a ", "file")]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Ours and transformers' of one folder, which transformers wrote: a Qwen3 with its own template."""
    path = publish(tmp_path_factory.mktemp("published") / "model", dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return groundup.load(path), theirs, transformers.AutoTokenizer.from_pretrained(path)


def nats(theirs, ids):
    with torch.no_grad():
        logp = theirs(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
    return logp.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


@pytest.mark.parametrize("context, continuation", PAIRS)
def test_log_likelihood(both, context, continuation):
    """As lm-eval does: its tokenizer puts no token before a text, so only an empty context is one, the end of a document."""
    ours, theirs, tokenizer = both
    prefix = [] if context.strip() else [ours.tokenizer.end_of_text]
    first = [*prefix, *tokenizer.encode(context.rstrip())]
    whole = [*prefix, *tokenizer.encode(context + continuation)]
    assert whole[: len(first)] == first
    expected = nats(theirs, whole)[len(first) - 1 :].sum().item()
    assert math.isclose(ours.log_likelihood(context, continuation), expected, abs_tol=1e-4)


def test_perplexity(both):
    ours, theirs, tokenizer = both
    text = "the function returns the path of the file"
    expected = nats(theirs, [ours.tokenizer.end_of_text, *tokenizer.encode(text, add_special_tokens=False)])
    assert math.isclose(ours.perplexity(text), math.exp(-expected.mean().item()), rel_tol=1e-5)
    assert ours.tokenizer(text) == tokenizer.encode(text, add_special_tokens=False) and len(ours.tokenizer) == len(tokenizer)


def test_greedy_text_and_chat(both):
    ours, theirs, tokenizer = both
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is a"}]
    rendered = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(rendered, add_special_tokens=False, return_tensors="pt")
    wanted = theirs.generate(ids, do_sample=False, max_new_tokens=12, repetition_penalty=1.0, suppress_tokens=list(
        range(len(tokenizer), theirs.config.vocab_size)))[0, ids.shape[1] :]  # fmt: skip
    expected = tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert ours.chats and ours.chat(talk, max_tokens=12, temperature=0) == expected


def test_continued_and_tuned_it_opens_in_transformers(both, tmp_path):
    ours, _, _ = both
    texts = ["the function returns the path of the file"] * 20 + [f"it takes file {n} and a name" for n in range(40)]
    more = groundup.pretrain(
        texts, ours.tokenizer, tmp_path / "more", start_from=ours.folder, context_length=32, tokens=1000, batch_tokens=128
    )
    assert more.perplexity(texts[0]) < ours.perplexity(texts[0])
    asked = [{"role": "user", "content": "what is a"}]
    talk = [{"messages": [*asked, {"role": "assistant", "content": f"a path {n}"}]} for n in range(4)]
    tuned = groundup.sft(more, talk, tmp_path / "sft", batch_examples=2)
    assert json.loads((tmp_path / "sft" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sft", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert tokenizer.chat_template == transformers.AutoTokenizer.from_pretrained(ours.folder).chat_template
    ids = [tuned.tokenizer.end_of_text, *tokenizer.encode(texts[0], add_special_tokens=False)]
    assert math.isclose(tuned.perplexity(texts[0]), math.exp(-nats(opened, ids).mean().item()), rel_tol=1e-4)


def test_a_new_model_with_its_tokenizer_has_our_template_and_leaves_the_tokenizer_as_it_was(both, tmp_path):
    ours, _, _ = both
    before = ours.tokenizer.digest()
    new = groundup.pretrain(["a path and a file"] * 40, ours.tokenizer, tmp_path / "new", depth=1, context_length=32, tokens=200)
    assert new.tokenizer.template is None and not new.tokenizer.foreign_files
    assert ours.tokenizer.digest() == before and ours.tokenizer.template is not None
    assert new.tokenizer("the path") == ours.tokenizer("the path")

"""What tiktoken itself makes of the files: our ids."""

import base64
import json

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import bpe
from groundup.tokenizer.patterns import PATTERNS
from groundup.tokenizer.tiktoken_file import export
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = ["it returns 1234 files of 56789", "def path(file):\n    return 'caf\u00e9' * 1000000"] * 9


def opened(path):
    """As anybody would."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in path.read_bytes().splitlines())}
    return tiktoken.Encoding("ours", mergeable_ranks=ranks, **json.loads((path.parent / f"{path.name}.json").read_text()))


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def both(request, tmp_path_factory):
    folder, pattern = tmp_path_factory.mktemp("tiktoken"), PATTERNS[request.param]
    ours = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(TEXTS, pattern), 400), pattern)
    ours.save(folder)
    told = export(folder, folder / "ours.tiktoken")
    assert told["tokens"] + told["special_tokens"] == ours.size and told["nfc"] is False
    return ours, opened(folder / "ours.tiktoken")


@given(text=st.text(max_size=60) | st.sampled_from(TEXTS) | st.from_regex(r"[a-f0-9 <|_>\n]{0,40}", fullmatch=True))
def test_tiktoken_gives_our_ids(both, text):
    ours, theirs = both
    assert theirs.encode_ordinary(text) == list(ours.encode(text))


def test_special_tokens_are_ours(both):
    ours, theirs = both
    assert theirs.encode("a<|im_end|>", allowed_special="all") == [*ours.encode("a"), ours.message_end]
    assert theirs.n_vocab == ours.size and theirs.decode([ours.message_start]) == "<|im_start|>"


def test_one_that_composes_text_says_so(tmp_path, caplog):
    Tokenizer.from_merges([], composed=True).save(tmp_path)
    assert export(tmp_path, tmp_path / "a.tiktoken")["nfc"] is True and "NFC" in caplog.text


def test_the_verb_and_what_it_refuses(toy_decoder, toy_tokenizer, tmp_path, groundup_here):
    from groundup.model import model_folder as folders

    folders.save(tmp_path / "model", toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, chat=False)
    out = tmp_path / "new" / "toy.tiktoken"
    done = groundup_here("export", tmp_path / "model", "--to", "tiktoken", "--out", out)
    assert done.returncode == 0 and opened(out).encode_ordinary("the path") == list(toy_tokenizer.encode("the path"))
    for words, said in ((("--to", "onnx"), "gguf or tiktoken"), (("--to", "tiktoken", "--type", "f32"), "--type")):
        done = groundup_here("export", tmp_path / "model", "--out", tmp_path / "refused", *words)
        assert done.returncode == 2 and said in done.stderr

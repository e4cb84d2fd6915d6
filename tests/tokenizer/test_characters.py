import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.characters import Characters, count_characters, train
from groundup.tokenizer.chat import render
from groundup.tokenizer.load import load
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.wordpiece import WordPiece, count_words
from groundup.tokenizer.wordpiece import train as train_wordpiece

BYTES = Characters()
LETTERS = Characters(train(count_characters(["naïve 漢字 🙂", "a naïve text\n"]), 275))
both = pytest.mark.parametrize("tokenizer", [BYTES, LETTERS], ids=["bytes", "characters"])


def test_bytes_are_their_own_ids():
    assert BYTES.encode("aé") == [*"aé".encode()] and BYTES.size == 256 + len(SPECIAL_TOKENS)


def test_a_character_of_the_vocabulary_is_one_token_and_others_are_bytes():
    ids = LETTERS.encode("ï漢∞")
    assert len(ids) == 1 + 1 + 3 and ids[2:] == [*"∞".encode()]
    assert [LETTERS.token_bytes(n) for n in ids[:2]] == ["ï".encode(), "漢".encode()]


def test_the_commonest_characters_are_kept_of_equals_the_smallest():
    assert train(count_characters(["bbaacd", "b"]), 256 + 4 + 3) == "abc"
    assert train(count_characters([]), 300) == ""
    with pytest.raises(UserError, match="bytes and special tokens alone are 260"):
        train(count_characters(["a"]), 259)


@both
@given(text=st.text(st.one_of(st.sampled_from("naïve 漢<|im_end|>"), st.characters(exclude_categories=["Cs"]))))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and sum(tokenizer.bytes_per_token[ids]) == len(text.encode())
    assert not {*ids} & {*tokenizer.special_tokens.values()}


@both
@given(data=st.binary())
def test_any_bytes_come_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data
    assert tokenizer.encode_bytes(data.decode("utf-8", "replace").encode()) == tokenizer.encode(
        data.decode("utf-8", "replace")
    )


@both
def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@both
def test_used_like_the_tokenizer_of_merges(tokenizer):
    peer = Tokenizer.from_merges([])
    wanted = {name for name in dir(peer) if not name.startswith("_")} - {"merges", "from_merges", "pattern", "composed"}
    assert wanted <= set(dir(tokenizer))
    ids, spoken = render(tokenizer, [{"role": "user", "content": "<|im_end|>é"}])
    assert ids.count(tokenizer.message_end) == 1 and len(ids) == len(spoken)
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a", ""])] == [tokenizer.encode("a"), []]
    with pytest.raises(IndexError):
        tokenizer.token_bytes(tokenizer.size)


@both
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path, 512, chat=True)
    loaded = load(tmp_path)
    assert isinstance(loaded, Characters) and loaded.characters == tokenizer.characters
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["<0x00>"] = 999
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load(tmp_path)


def test_every_kind_is_opened_by_its_folder(tmp_path):
    Tokenizer.from_merges([(b"a", b"b")]).save(tmp_path / "bpe")
    WordPiece(train_wordpiece(count_words(["ab"]), 20)).save(tmp_path / "wordpiece")
    assert isinstance(load(tmp_path / "bpe"), Tokenizer) and isinstance(load(tmp_path / "wordpiece"), WordPiece)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "nowhere")
    for content in ("[]", '{"model": null}', '{"model": [1]}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            load(tmp_path)


def test_a_vocabulary_holds_each_character_once():
    for characters in ("aa", "\ud800"):
        with pytest.raises(UserError, match="each once"):
            Characters(characters)

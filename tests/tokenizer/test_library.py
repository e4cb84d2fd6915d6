"""Tokenizers of other makers: what is refused and how, bytes of tokens, what a folder does not name."""

import json
import sys
from pathlib import Path

import pytest

from groundup.core.errors import UserError
from groundup.tokenizer import encode
from groundup.tokenizer.chat import render
from groundup.tokenizer.hf_tokenizer import HFTokenizer
from groundup.tokenizer.library import LibraryTokenizer
from groundup.tokenizer.load import load, of_model
from groundup.tokenizer.tokenizer import StreamDecoder, longest_words

sys.path.insert(0, str(Path(__file__).parent))
from other_makers import MAKERS


def written(path, name, template=False, **changes):
    """The folder of a maker, with parts of its tokenizer.json changed; without any settings but its special tokens."""
    make, named, own = MAKERS[name]
    path.mkdir(exist_ok=True)
    description = json.loads(make().to_str())
    for part, value in changes.items():
        (description["model"] if part in description["model"] else description)[part] = value
    (path / "tokenizer.json").write_text(json.dumps(description))
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    if template:
        (path / "chat_template.jinja").write_text(own)
    return path


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("llama3", {"type": "Unigram"}, "Unigram"),
        ("llama3", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ("llama3", {"decoder": None}, "decoder of none"),
        ("llama3", {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "decoder of BPEDecoder"),
        ("llama3", {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}, "normalizer Strip"),
        ("llama3", {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
        ("llama3", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}}, "ByteLevel puts a space"),
        ("mistral", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, METASPACE]}}, "Metaspace puts a space"),
        ("mistral", {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}}, "Fuse + Byte"),
        ("mistral", {"decoder": {"type": "Sequence", "decoders": [1]}}, "no object with a type"),
        ("mistral", {"decoder": {"type": "Sequence"}}, "has no decoders"),
        ("mistral", {"merges": [["no", "such"]]}, "not a tokenizer that can be read"),
        ("mistral", {"added_tokens": [{"id": 5, "content": ""}]}, "added token is no object with text"),
        ("mistral", {"added_tokens": 7}, "added token is no object with text"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, name, changes, said):
    with pytest.raises(UserError) as refused:
        load(written(tmp_path, name, **changes))
    assert said in str(refused.value) and "tokenizer.json" in str(refused.value) and len(str(refused.value)) < 300


def test_special_tokens_that_a_folder_lacks(tmp_path):
    path = written(tmp_path, "llama3")
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|none|>"}')
    with pytest.raises(UserError, match=r"eos_token '<\|none\|>' is none of the special tokens"):
        load(path)
    (path / "tokenizer_config.json").unlink()
    assert load(path).end_of_text == load(path).special_tokens["<|end_of_text|>"]  # known by its name
    found = json.loads((path / "tokenizer.json").read_text())
    found["added_tokens"][1]["content"] = "<|over|>"
    (path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="no token ends a text; name its eos_token"):
        load(path)
    found["added_tokens"][1]["id"] += 100
    (path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"id of '<\|over\|>' does not follow"):
        load(path)


def test_without_a_chat_template_it_knows_no_conversation(tmp_path):
    ours = of_model(written(tmp_path, "mistral"))
    assert ours.message_end not in ours.ends and ours.message_end < 0
    with pytest.raises(UserError, match="no chat template"):
        render(ours, [{"role": "user", "content": "the cat"}], add_generation_prompt=True)


def test_bytes_of_tokens(tmp_path):
    for name in ("llama3", "mistral", "gemma"):
        ours = load(written(tmp_path / name, name, template=True))
        assert isinstance(ours, LibraryTokenizer)
        text = "the  cat's\n\n🙂 naïve 7"
        ids = ours.encode_after(text, "text")
        assert ours.decode_bytes(ids) == text.encode() and ours.bytes_per_token[ids].sum() == len(text.encode())
        assert not any(ours.token_bytes(token) for token in ours.ends)
        assert longest_words(ours, 3)


def test_a_stream_gives_what_is_settled(tmp_path):
    ours = load(written(tmp_path, "mistral"))
    decoder = StreamDecoder(ours)
    ids = ours.encode("the 🙂!")
    parts = [decoder.push(token) for token in ids] + [decoder.finish()]
    assert "".join(parts) == "the 🙂!" and parts[0] == "the" and "\ufffd" not in "".join(parts)
    assert ours.decode([*ids[:-3], ids[-1]]).count("\ufffd") == 2  # two of four bytes, as the library has it


def test_the_same_ids_as_the_tokenizer_report_has(tmp_path):
    for name in MAKERS:
        path = written(tmp_path / name.replace(" ", "-"), name)
        assert load(path).encode("the cat's 1234\n\n 漢") == HFTokenizer(path).encode("the cat's 1234\n\n 漢")


def test_a_corpus_is_encoded_between_what_begins_and_what_ends_a_text(tmp_path):
    from groundup.data.token_files import TokenFile

    path = written(tmp_path / "llama3", "llama3")
    (tmp_path / "text.txt").write_text("the cat sat")
    found = encode.encode_corpus(path, [tmp_path / "text.txt"], tmp_path / "tokens", workers=1)
    ours = of_model(path)
    assert TokenFile(tmp_path / "tokens")[0].tolist() == [ours.begin_of_text, *ours.encode("the cat sat"), ours.end_of_text]
    assert found["library"] == "tokenizers" and found["bytes_per_token"] == 11 / len(ours.encode("the cat sat"))

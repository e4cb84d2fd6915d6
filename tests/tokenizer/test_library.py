"""Tokenizers of other makers: what is refused and how, bytes of tokens, what a folder does not name."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer import encode
from groundup.tokenizer.chat import render
from groundup.tokenizer.hf_tokenizer import HFTokenizer
from groundup.tokenizer.library import LibraryTokenizer
from groundup.tokenizer.load import load, of_model
from groundup.tokenizer.tokenizer import StreamDecoder, longest_words

sys.path.insert(0, str(Path(__file__).parent))
from other_makers import MAKERS, written_by


def written(path, name, template=False, **changes):
    """The folder of a maker, with parts of its tokenizer.json changed; without any settings but its special tokens."""
    _, named, own = MAKERS[name]
    path.mkdir(exist_ok=True)
    description = json.loads(written_by(name))
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
PUTS = {
    "type": "TemplateProcessing", "pair": [],
    "single": [{"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<|eot_id|>": {"id": "<|eot_id|>", "ids": [397], "tokens": ["<|eot_id|>"]}},
}  # fmt: skip


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
        ("llama3", {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "x"}}, "a regular expression"),
        ("llama3", {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "or an empty text"),
        ("llama3", {"post_processor": {**PUTS, "special_tokens": {}}}, "that it does not describe"),
        ("llama3", {"post_processor": {**PUTS, "single": PUTS["single"][:1] + PUTS["single"]}}, "puts 2 tokens before a text"),
        ("llama3", {"vocab": {"a": 4_000_000_000}, "merges": []}, "no vocabulary"),
        ("llama3", {"vocab": {"a": 0, "b": 0}, "merges": []}, "no vocabulary"),
        ("mistral", {"added_tokens": 7}, "added token is no object with text"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, name, changes, said):
    with pytest.raises(UserError) as refused:
        load(written(tmp_path, name, **changes))
    assert said in str(refused.value) and "tokenizer.json" in str(refused.value) and len(str(refused.value)) < 300


PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor", "added_tokens", "model", "padding", "truncation")
VALUES = st.sampled_from([None, 0, -1, "", "x", [], {}, [None], {"type": "Sequence"}, True, "always", "▁"])


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(["llama3", "mistral", "mistral new"]), part=st.sampled_from(PARTS), value=VALUES, draw=st.data())
def test_whatever_a_part_is_it_is_read_or_refused(tmp_path_factory, name, part, value, draw):
    """One entry anywhere in a part is another value; vocabulary and merges stay."""
    description = json.loads(written_by(name))
    places, waiting = [(description, part)], [description[part]]
    while waiting:
        one = waiting.pop()
        keys = [key for key in one if key not in ("vocab", "merges")] if isinstance(one, dict) else []
        keys = [*range(len(one))] if isinstance(one, list) else keys
        places += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    holder, key = draw.draw(st.sampled_from(places))
    holder[key] = value
    folder = tmp_path_factory.mktemp("changed")
    (folder / "tokenizer.json").write_text(json.dumps(description))
    try:
        ours = load(folder)
        assert ours.decode(ours.encode("the cat")) and ours.document(ours.encode_after(" x", "text")).size
    except UserError as error:
        assert len(str(error).replace(str(folder), "")) < 260


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

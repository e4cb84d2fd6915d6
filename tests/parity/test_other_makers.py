"""Tokenizers of other makers give the ids, texts and conversations that `tokenizers` and transformers give."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.serving.loaded_models import ServedModel
from groundup.tokenizer.chat import render
from groundup.tokenizer.library import LibraryTokenizer
from groundup.tokenizer.load import load
from groundup.tokenizer.tokenizer import StreamDecoder, Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
from other_makers import MAKERS, publish

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
tokenizers = pytest.importorskip("tokenizers")

HARD = [
    "", " ", "  ", "\n", " a", "  two  spaces ", "\t\tx", "hello\n\n\nworld\r\n", "12345 3.14", "it's  7", "▁▁a ▁",
    "🙂 👩‍👩‍👧 漢字かな e\u0301 naïve ﬁ", "\x00\u200b\ufeff\u3000", "<|eot_id|></s><s>[INST] x [/INST]<bos><|im_end|>",
    "<unk> <0x0A>", "<h1>a\n\n\n\n", "<think>a</think>", "a <tool> b<tool> cats naïve c",
    "a" * 300, " " * 50, "\ud800 lone",
]  # fmt: skip
TALKS = [
    [("user", "the question")],
    [("user", " hi\n<b> "), ("assistant", "It's 7 cats."), ("user", "  the cat")],
    [("user", "the question"), ("assistant", "the answer")],
    [("user", "a\n\nb"), ("assistant", "  naïve 🙂"), ("user", "[x] {y}"), ("assistant", "def cat(hat):\n        return hat")],
]
names = pytest.mark.parametrize("name", MAKERS)
_opened = {}


@pytest.fixture
def both(name, tmp_path_factory):
    return opened(name, tmp_path_factory)


def opened(name, factory):
    """Ours, transformers' and the library's of one folder."""
    if name not in _opened:
        path = publish(factory.mktemp("published") / "model", name)
        raw = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        raw.encode_special_tokens = True
        _opened[name] = (load(path), transformers.AutoTokenizer.from_pretrained(path), raw)
    return _opened[name]


def streamed(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return "".join([*map(decoder.push, ids), decoder.finish()])


def same(ours, theirs, raw, text):
    ids = ours.encode(text)
    clean = text.encode("utf-8", "replace").decode() if "\ud800" not in text else text.replace("\ud800", "\ufffd")
    assert ids == theirs.encode(clean, add_special_tokens=False, split_special_tokens=True), text
    assert ids == raw.encode(clean, add_special_tokens=False).ids
    assert not {*ids} & {number for token, number in ours.special_tokens.items() if token in theirs.all_special_tokens}
    assert ours.encode_batch([text])[0].tolist() == ids
    assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids, skip_special_tokens=True)


@names
def test_hard_texts(both, name):
    for text in HARD:
        if name != "qwen" or "think" not in text:  # of our own class no added token comes out of text
            same(*both, text)
    assert isinstance(both[0], LibraryTokenizer) == (name != "qwen") and isinstance(both[0], Tokenizer)


@pytest.fixture(scope="module")
def everyone(tmp_path_factory):
    return [opened(name, tmp_path_factory) for name in MAKERS]


PARTS = st.one_of(st.characters(), st.sampled_from([" ", "  ", "\n", "\t", "the", "▁", "7", "'s", "</s>", "<|eot_id|>", "🙂"]))


@settings(max_examples=60)
@given(parts=st.lists(PARTS, max_size=12), number=st.integers(0, len(MAKERS) - 1))
def test_any_text(everyone, parts, number):
    same(*everyone[number], "".join(parts))


@settings(max_examples=100)
@given(drawn=st.lists(st.integers(0, 10**6), max_size=12), number=st.integers(0, len(MAKERS) - 1))
def test_any_ids(everyone, drawn, number):
    ours, theirs, _ = everyone[number]
    ids = [token % len(theirs) for token in drawn]
    assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids, skip_special_tokens=True)


@names
def test_every_single_id(both):
    ours, theirs, _ = both
    assert len(ours) == len(theirs) > 300
    for token in range(len(theirs)):
        assert ours.decode([token]) == streamed(ours, [token]) == theirs.decode([token], skip_special_tokens=True), token
        assert ours.bytes_per_token[token] == 0 or ours.token_bytes(token)


@names
def test_the_parts_of_a_text_are_its_text(both):
    ours = both[0]
    for first, second in (("the cat", " sat"), ("the", " 🙂"), ("a\n", "b"), ("x", "  y")):
        ids = [*ours.encode(first), *ours.encode_after(second, "text")]
        rest = ours.encode_after(second, "text")
        assert ours.decode(ids) == first + second and ours.decode_within(rest) == second
        decoder = StreamDecoder(ours, within=True)
        assert "".join([*map(decoder.push, rest), decoder.finish()]) == second


@names
def test_a_text_to_continue_begins_as_elsewhere(both, tmp_path):
    """Qwen and GPT-2 put no token before it; a server's /v1/completions and /tokenize neither."""
    ours, theirs, _ = both
    for text in ("the cat", "  two\n", "🙂"):
        assert ours.prompt(text) == theirs(text)["input_ids"]
        assert ServedModel("served", tmp_path, ours, None).prompt_of_text(text) == ours.prompt(text)
    assert ours.prompt("") in ([ours.begin_of_text], theirs("")["input_ids"])


@pytest.mark.parametrize("name", [name for name, (*_, template) in MAKERS.items() if template])
@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
def test_conversations(both, talk):
    ours, theirs, _ = both
    messages = [{"role": role, "content": text} for role, text in talk]
    prompt = talk[-1][0] == "user"
    ids, mask = render(ours, messages, add_generation_prompt=prompt)
    assert ids == theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    if theirs.bos_token_id not in (None, ours.special_tokens.get("<|im_start|>")):
        assert ids[0] == theirs.bos_token_id == ours.begin_of_text and ids.count(theirs.bos_token_id) == 1
    if not prompt:
        said = [token for token, says in zip(ids, mask, strict=True) if says]
        assert said[-1] == ours.message_end in ours.ends
        before = render(ours, messages[:-1], add_generation_prompt=True)[0]
        last = len(mask) - mask[::-1].index(1)
        assert ids[: len(before)] == before and all(mask[len(before) : last]) and not any(mask[last:])
        assert ours.decode(ids[len(before) : last]).strip() == talk[-1][1].strip()


@settings(max_examples=60)
@given(parts=st.lists(PARTS, max_size=8), number=st.integers(0, len(MAKERS) - 1))
def test_any_question(everyone, parts, number):
    ours, theirs, _ = everyone[number]
    text = "x" + "".join(parts)
    if ours.template is None or any(token in text for token in ours.special_tokens):
        return
    messages = [{"role": "user", "content": text}]
    assert render(ours, messages, add_generation_prompt=True)[0] == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("name", [name for name, (*_, template) in MAKERS.items() if template])
def test_what_people_say_is_no_special_token(both):
    ours, theirs, _ = both
    plain, _ = render(ours, [{"role": "user", "content": "x"}], add_generation_prompt=True)
    said = "".join(ours.special_tokens)
    ids, _ = render(ours, [{"role": "user", "content": said}], add_generation_prompt=True)
    special = {theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens} | {*ours.ends}
    assert [token for token in ids if token in special] == [token for token in plain if token in special]


def test_the_beginning_and_the_ends_of_llama(tmp_path):
    ours = load(publish(tmp_path, "llama3"))
    ids = ours.special_tokens
    assert (ours.begin_of_text, ours.end_of_text, ours.message_end) == (
        ids["<|begin_of_text|>"], ids["<|end_of_text|>"], ids["<|eot_id|>"],
    )  # fmt: skip
    assert ours.document([7]).tolist() == [ids["<|begin_of_text|>"], 7, ids["<|end_of_text|>"]]
    assert ours.pad not in ours.ends


def test_the_file_is_written_as_it_came(tmp_path):
    for name in ("llama3", "mistral", "gpt2"):
        path = publish(tmp_path / name, name)
        load(path).save(tmp_path / f"{name} again", chat=False)
        for file in path.iterdir():
            assert (tmp_path / f"{name} again" / file.name).read_bytes() == file.read_bytes()
        assert load(tmp_path / f"{name} again").digest() == load(path).digest()

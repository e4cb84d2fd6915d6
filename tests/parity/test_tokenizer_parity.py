"""Our tokenizer against Hugging Face's `tokenizers` and `transformers`: merges, ids, text, conversations."""

import json
import os
import random
import sysconfig
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from groundup.tokenizer.bpe import PRETOKENIZE, SPECIAL_TOKENS, count_pretokens, train
from groundup.tokenizer.chat import render
from groundup.tokenizer.hf_tokenizer import HFTokenizer
from groundup.tokenizer.patterns import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer

DATA = Path(__file__).parents[2] / os.environ.get("GROUNDUP_DATA", "../shared/data")


def python_source():
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-f]*.py"))
    return [path.read_text(encoding="utf-8") for path in paths][:40]


def many_scripts():
    """Emoji, Chinese, Korean, Arabic, combining marks, code and runs of white space, at random."""
    pieces = ["漢字仮名", "汉字", "한국어", "🙂", "👩‍👩‍👧", "العربية", "e\u0301"]
    pieces += ["def f(x):\n\treturn x ** 2\n", "    ", "\r\n\r\n"]
    pieces += ["it's", "I'LL", "3.14159", "\u00a0", "\u3000", "x\u200dy", "'ſ", "http://a.b/?c=d&e"]
    pieces += ["<|im_end|>", "\x00\x1c"]
    chosen = random.Random(0)
    return ["".join(chosen.choices(pieces, k=60)) for _ in range(200)]


def textbook():
    path = DATA / "text" / "openstax.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is missing: set GROUNDUP_DATA to the folder of test data")
    import pyarrow.parquet

    texts, size = [], 0
    for text in pyarrow.parquet.read_table(path, columns=["text"]).column(0).to_pylist():
        texts.append(text)
        size += len(text)
        if size > 2_000_000:
            return texts
    return texts


def peer_trained(texts, vocabulary):
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocabulary - len(SPECIAL_TOKENS)
    peer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    peer.add_special_tokens(list(SPECIAL_TOKENS))
    return peer


@pytest.mark.parametrize(
    ("corpus", "vocabulary"), [(python_source, 2000), (many_scripts, 900), (many_scripts, 5000), (textbook, 1500)]
)
def test_merges_and_ids_are_the_peers(corpus, vocabulary, tmp_path):
    texts = corpus()
    peer = peer_trained(texts, vocabulary)
    ours = Tokenizer.from_merges(train(count_pretokens(texts), vocabulary))
    ours.save(tmp_path, 512)
    found, expected = json.loads((tmp_path / "tokenizer.json").read_text()), json.loads(peer.to_str())
    assert found["model"]["merges"] == expected["model"]["merges"]
    assert found["model"]["vocab"] == expected["model"]["vocab"]
    for ours_added, peer_added in zip(found["added_tokens"], expected["added_tokens"], strict=True):
        assert ours_added == peer_added


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("aab", min_size=1, max_size=14), min_size=1, max_size=12))
def test_ties_and_overlaps_go_as_the_peers_do(texts):
    peer = json.loads(peer_trained(texts, 300).to_str())["model"]["merges"]
    assert [[left.decode(), right.decode()] for left, right in train(count_pretokens(texts), 300)] == peer


QWEN_ADDED = (*SPECIAL_TOKENS[:3], "<|object_ref_start|>", "<tool_call>")


@pytest.fixture(scope="module")
def qwens(tmp_path_factory):
    """A folder with what distinguishes Qwen2.5's and Qwen3's tokenizer.json: NFC, its own added tokens, no <|pad|>."""
    texts = [*many_scripts(), *python_source()[:10]]
    peer = tokenizers.Tokenizer(models.BPE())
    peer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    peer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    peer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    )
    peer.add_special_tokens(list(QWEN_ADDED[:-1]))
    peer.add_tokens([tokenizers.AddedToken(QWEN_ADDED[-1], normalized=False)])
    folder = tmp_path_factory.mktemp("qwen")
    peer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("as_strings", [False, True])
def test_qwens_tokenizer_is_read_and_written(qwens, tmp_path, as_strings):
    found = json.loads((qwens / "tokenizer.json").read_text())
    if as_strings:
        found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    ours = Tokenizer.load(tmp_path)
    assert list(ours.special_tokens) == list(QWEN_ADDED) and ours.pad == ours.end_of_text
    ours.save(tmp_path / "again", 512, chat=True)
    theirs = tokenizers.Tokenizer.from_file(str(qwens / "tokenizer.json"))
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    for peer in (theirs, written):
        peer.encode_special_tokens = True
        for text in [*SAMPLES[:-2], *many_scripts()[:20]]:
            assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids
            assert ours.decode(ours.encode(text)) == unicodedata.normalize("NFC", text)
    transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert Tokenizer.load(tmp_path / "again").as_json() == ours.as_json()


SAMPLES = [
    "",
    "The mouse eats the cheese. It's 3.14159 o'clock, I'LL say!",
    "def f(x):\n        if x:\n\t\treturn  x ** 2   # 漢字\r\n\r\n\n   \n",
    "👩‍👩‍👧🙂 漢字かな交じり文 한국어 العربية e\u0301 \u00a0\u3000 \x00\x1c'ſ",
    "   leading, trailing   ",
    "<|im_start|>system\nx<|im_end|><|endoftext|><|pad|> <|im_end |>",
    "a" * 3000 + " " * 3000 + "\n" * 300,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.from_merges(train(count_pretokens([*many_scripts(), *python_source()[:10]]), 1200)).save(path, 512)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def peer(folder):
    loaded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.encode_special_tokens = True  # its name for "text that looks special is text"
    return loaded


def test_ids_are_those_of_tokenizers(ours, peer):
    for text in [*SAMPLES, *many_scripts()[:20], python_source()[12]]:
        ids = ours.encode(text)
        assert ids == peer.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == peer.decode(ids) == text


# Up to Cyrillic: of the newest characters, the two libraries know differently which are letters.
old_characters = st.characters(max_codepoint=0x52F, exclude_categories=["Cs"])


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(old_characters, st.sampled_from("漢🙂 \n'"))))
def test_any_text_gives_the_ids_of_tokenizers(ours, peer, text):
    assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids


@settings(max_examples=60, deadline=None)
@given(units=st.lists(st.text("deflrtx漢字 =", min_size=1, max_size=12), min_size=1, max_size=4), count=st.integers(1, 300))
def test_long_runs_give_the_ids_of_tokenizers(ours, peer, units, count):
    text = "".join(unit * count for unit in units)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundup.tokenizer.tokenizer.BLOCK", 20)
        patch.setattr("groundup.tokenizer.tokenizer.CHUNK", 64)
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def automatic(folder):
    transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_are_those_of_transformers(ours, automatic):
    for text in SAMPLES:
        assert ours.encode(text) == automatic(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        assert automatic.decode(ours.encode(text)) == text
    assert len(automatic) == ours.size and automatic.model_max_length == 512
    assert (automatic.eos_token_id, automatic.pad_token_id) == (ours.end_of_text, ours.pad)
    assert automatic.bos_token_id == ours.end_of_text and set(automatic.all_special_ids) == set(ours.special_tokens.values())


def test_a_text_begins_as_a_document_does_once(ours, automatic, peer):
    for text in ["", "a b", SAMPLES[2]]:
        expected = [ours.end_of_text, *ours.encode(text)]
        assert automatic(text)["input_ids"] == peer.encode(text).ids == expected
    two = peer.encode("a", "b")
    assert two.ids == [ours.end_of_text, *ours.encode("a"), *ours.encode("b")]
    assert HFTokenizer(automatic.name_or_path).encode("a b") == ours.encode("a b")  # by the same file, without it


def test_a_folder_of_before_loads(ours, folder, tmp_path):
    found = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(found | {"post_processor": None}))
    older = Tokenizer.load(tmp_path)
    assert older.as_json() == ours.as_json() and older.encode(SAMPLES[2]) == ours.encode(SAMPLES[2])


def test_a_folder_that_transformers_saved_again_loads(ours, automatic, tmp_path):
    automatic.save_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).merges == ours.merges


@pytest.mark.parametrize("name", PATTERNS)
def test_every_rule_gives_the_ids_of_transformers_and_tokenizers(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
    texts = [*many_scripts()[:60], *SAMPLES, "a 1234567 12345\n    return 1\n\t\tx  = 2"]
    pattern = PATTERNS[name]
    ours = Tokenizer.from_merges(train(count_pretokens(texts, pattern), 600), pattern)
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).pattern is pattern
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    peer.encode_special_tokens = True
    for text in texts:
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == loaded(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]


def test_model_type_does_not_change_the_ids(ours, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
    ours.save(tmp_path, 512)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(SAMPLES[2])["input_ids"] == [ours.end_of_text, *ours.encode(SAMPLES[2])]


CONVERSATIONS = [
    [("user", "Hi")],
    [("user", " What is 2 + 2? \n"), ("assistant", "\n\n  4.\n")],
    [("system", "Be brief.\n"), ("user", "漢字?"), ("assistant", "はい 🙂"), ("user", "\tok"), ("assistant", "")],
]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_conversations_are_those_of_the_template(ours, automatic, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    both = automatic.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = render(ours, messages)
    assert ids == both["input_ids"] and mask == both["assistant_masks"]
    if turns[-1][0] == "user":
        prompt = automatic.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert render(ours, messages, add_generation_prompt=True)[0] == prompt

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer import tokenizer as tokenizers_module
from groundup.tokenizer.bpe import SPECIAL_TOKENS, count_pretokens, train
from groundup.tokenizer.patterns import PATTERNS
from groundup.tokenizer.tokenizer import StreamDecoder, Tokenizer, longest_words

CORPUS = ["the cat and the hat", "def cat(hat):\n        return hat\n", "🙂🙂 漢字 漢字", "<|im_end|> <|pad|>"] * 20
MERGES = train(count_pretokens(CORPUS), 300)
TOKENIZER = Tokenizer.from_merges(MERGES)

any_text = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("the cat🙂漢字\n <|>")))


@given(any_text)
def test_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()
    assert TOKENIZER.bytes_per_token[ids].sum() == len(text.encode())
    assert not set(ids) & set(TOKENIZER.special_tokens.values())


runs = st.tuples(st.text("the catha漢字🙂<|'1 \n", min_size=1, max_size=6), st.integers(1, 60)).map(lambda run: run[0] * run[1])


@cache
def with_rule(name):
    return Tokenizer.from_merges(train(count_pretokens(CORPUS + ["1234567 "] * 9, PATTERNS[name]), 300), PATTERNS[name])


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(runs, max_size=4), chunk=st.integers(1, 40))
def test_long_runs_are_encoded_in_parts_as_a_whole(name, texts, chunk):
    tokenizer, text = with_rule(name), "".join(texts)
    whole = tokenizer._encoding.encode_ordinary(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers_module, "BLOCK", 5)
        patch.setattr(tokenizers_module, "CHUNK", chunk)
        patch.setattr(tokenizers_module, "LONGEST_DIGITS", 9)
        assert tokenizer.encode(text) == whole


def test_only_long_runs_go_another_way(monkeypatch):
    seen = []
    monkeypatch.setattr(Tokenizer, "_encode_pretoken", lambda self, data: seen.append(data) or [])
    TOKENIZER.encode("cat " * 30_000 + "c" * 19_999)
    assert not seen
    TOKENIZER.encode("cat " * 100 + "c" * 40_000)
    assert seen == [b"cat", *[b" cat"] * 99, b" " + b"c" * 40_000]


def test_a_long_number_is_encoded_in_parts():
    tokenizer = Tokenizer.from_merges(MERGES, PATTERNS["threes-from-right"])
    text = "1234567" * 3_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, TOKENIZER.size - 1)))
def test_any_ids_decode_and_stream_alike(ids):
    data = b"".join(map(TOKENIZER.token_bytes, ids))
    assert TOKENIZER.decode(ids) == data.decode("utf-8", "replace")
    decoder = StreamDecoder(TOKENIZER)
    assert "".join([*(decoder.push(token) for token in ids), decoder.finish()]) == TOKENIZER.decode(ids)


def test_stream_holds_back_half_a_character():
    decoder = StreamDecoder(TOKENIZER)
    pieces = [decoder.push(TOKENIZER.encode("é")[0]), decoder.push(TOKENIZER.encode("é")[1]), decoder.finish()]
    assert pieces == ["", "é", ""]
    assert decoder.push(TOKENIZER.encode("é")[0]) + decoder.finish() == "\ufffd"


def test_ids_are_bytes_then_merges_then_special_tokens():
    assert TOKENIZER.size == 300 and len(MERGES) == 300 - 256 - 4
    assert sorted(TOKENIZER.token_bytes(token) for token in range(256)) == [bytes([byte]) for byte in range(256)]
    assert [TOKENIZER.token_bytes(256 + i) for i in range(len(MERGES))] == [left + right for left, right in MERGES]
    named = [TOKENIZER.end_of_text, TOKENIZER.message_start, TOKENIZER.message_end, TOKENIZER.pad]
    assert named == [296, 297, 298, 299] == list(TOKENIZER.special_tokens.values())
    assert not TOKENIZER.bytes_per_token[296:].any() and TOKENIZER.bytes_per_token[:296].all()
    for outside in (-1, 300):
        with pytest.raises(IndexError):
            TOKENIZER.token_bytes(outside)


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_text_is_never_a_special_token(name):
    ids = TOKENIZER.encode(f"a{name}b")
    assert TOKENIZER.decode(ids) == f"a{name}b" and max(ids) < TOKENIZER.end_of_text


def test_surrogates_are_encoded_as_the_replacement_character():
    assert TOKENIZER.encode("a\udc80b") == TOKENIZER.encode("a\ufffdb")
    assert TOKENIZER.encode("\ud83d\ude42") == TOKENIZER.encode("🙂")


def test_a_million_spaces():
    text = "x" + " " * 1_000_100 + "y"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_batches_equal_single_texts_at_any_number_of_threads():
    texts = [*CORPUS, "", "\ud800"]
    for threads in (1, 3):
        batch = TOKENIZER.encode_batch(texts, threads)
        assert [ids.tolist() for ids in batch] == [TOKENIZER.encode(text) for text in texts]
        assert all(ids.dtype == np.int32 for ids in batch)


def test_save_is_stable_and_load_gives_it_back(tmp_path):
    TOKENIZER.save(tmp_path / "a", 512)
    loaded = Tokenizer.load(tmp_path / "a")
    loaded.save(tmp_path / "b", 512)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert loaded.merges == MERGES and loaded.encode("the cat 🙂") == TOKENIZER.encode("the cat 🙂")
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert config["eos_token"] != config["pad_token"] and config["model_max_length"] == 512


def swap_merges(found):
    merges = found["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def swap_ids(found):
    found["model"]["vocab"]["!"], found["model"]["vocab"]['"'] = 1, 0


def other_pattern(found):
    found["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\S+"


@pytest.mark.parametrize(
    "damage",
    [
        swap_merges,
        swap_ids,
        other_pattern,
        lambda found: found["model"]["merges"].pop(),
        lambda found: found["model"]["merges"].append(["漢", "x"]),
        lambda found: found["added_tokens"].pop(0),
        lambda found: found["added_tokens"].pop(1),
        lambda found: found.update(normalizer={"type": "NFKC"}),
        lambda found: found["model"].update(ignore_merges=True),
        lambda found: found["model"].update(end_of_word_suffix="</w>"),
        lambda found: found["model"].update(continuing_subword_prefix="##"),
        lambda found: found["model"].update(type="Unigram"),
        lambda found: found["model"].update(type=["BPE"]),
        lambda found: found.pop("model"),
    ],
)
def test_an_altered_file_is_refused(tmp_path, damage):
    TOKENIZER.save(tmp_path, 512)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    damage(found)
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"tokenizer\.json.*train the tokenizer again"):
        Tokenizer.load(tmp_path)


def test_a_missing_or_cut_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path, 512)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not valid JSON"):
        Tokenizer.load(tmp_path)


def test_the_longest_words_are_no_spaces_rules_or_parts_of_characters():
    def joined(text, merges):
        parts = [bytes([byte]) for byte in text.encode()]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]

    merges = []
    for text in (" " * 20, "-" * 30, "=" * 12, " return", "naïv", "a\n", "…"):
        joined(text, merges)
    tokenizer = Tokenizer.from_merges(list(dict.fromkeys(merges)))
    assert longest_words(tokenizer, 2) == [" return", "naïv"]  # and not " retur", which it was merged from
    everything = longest_words(tokenizer, 10_000)
    assert all(any(map(str.isalpha, text)) for text in everything) and not set(everything) & set(SPECIAL_TOKENS)
    assert len(everything) == len(set(everything)) and "\ufffd" not in "".join(everything)

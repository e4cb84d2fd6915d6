import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer.wordpiece import CONTINUES, SPECIAL_TOKENS, WordPiece, count_words, train

TEXTS = ["Hugs, pugs and PUNS: a hug of a pug.", "The pun was on the bun; un bun élève", "漢字 hugging hugged 12 3.5"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(train(count_words(TEXTS), 90))


def test_words_are_those_of_bert():
    counts = count_words(["Élan, vital!  漢字\tx\u0301y\x00z\u200b [SEP] don't"])
    expected = ["elan", ",", "vital", "!", "漢", "字", "xyz", "[", "sep", "]", "don", "'", "t"]
    assert counts == Counter(expected)
    assert count_words(["Élan"], lowercase=False) == Counter(["Élan"])


def test_the_commonest_pair_is_joined_first():
    counts = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    begin = [*SPECIAL_TOKENS, *"bghnpsu", *(CONTINUES + character for character in "bghnpsu")]
    # ##u + ##g 20 times; then ##u + ##n 16; then h + ##ug 15
    assert train(counts, 22) == [*begin, "##ug", "##un", "hug"]
    assert train(counts, 20) == [*begin, "##ug"]


def plainly(counts, vocabulary):
    """The rule, said again without any index: recount every pair before every join."""
    alphabet = {character for word in counts for character in word}
    inside = {character for word in counts if len(word) > 1 for character in word}
    pieces = [*SPECIAL_TOKENS, *sorted(alphabet), *(CONTINUES + c for c in sorted(inside))]
    words = {word: [word[0], *(CONTINUES + c for c in word[1:])] for word in counts}
    while len(pieces) < vocabulary:
        pairs = Counter()
        for word, cut in words.items():
            for pair in pairwise(cut):
                pairs[pair] += counts[word]
        if not pairs:
            return pieces
        left, right = min(pairs, key=lambda p: (-pairs[p], pieces.index(p[0]), pieces.index(p[1])))
        joined = left + right.removeprefix(CONTINUES)
        if joined not in pieces:
            pieces.append(joined)
        for cut in words.values():
            place = 0
            while place < len(cut) - 1:
                if (cut[place], cut[place + 1]) == (left, right):
                    cut[place : place + 2] = [joined]
                place += 1
    return pieces


@settings(max_examples=60)
@given(st.dictionaries(st.text("aabc", min_size=1, max_size=9), st.integers(1, 9), max_size=9), st.integers(11, 40))
def test_training_follows_its_rule(counts, vocabulary):
    assert train(counts, vocabulary) == plainly(counts, vocabulary)


def test_three_processes_write_the_same_file(environment, tmp_path):
    program = """
import sys, pathlib
from groundup.tokenizer.wordpiece import WordPiece, count_words, train
texts = [f"word{i * i % 977} ties{i % 31} {chr(97 + i % 26) * 3}" for i in range(600)]
WordPiece(train(count_words(texts), 400)).save(pathlib.Path(sys.argv[1]))
"""
    files = []
    for seed in ("0", "1", "77"):
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        subprocess.run(command, env={**environment, "PYTHONHASHSEED": seed}, check=True)
        files.append((tmp_path / seed / "tokenizer.json").read_bytes())
    assert files[0] == files[1] == files[2] and b"##" in files[0]


def test_the_order_of_documents_and_shards_does_not_matter():
    whole = count_words(TEXTS)
    parts = count_words(TEXTS[5:][::-1]) + count_words(TEXTS[:5])
    assert train(dict(reversed(whole.items())), 90) == train(parts, 90)


def test_counts_above_32_bits():
    assert train({"ab": 2**40, "cd": 2**40 + 1, "ef": 2**31}, 19)[-2:] == ["cd", "ab"]


def test_edges_of_the_vocabulary():
    assert train({}, 100) == [*SPECIAL_TOKENS]
    assert train({"ab": 1}, 100) == [*SPECIAL_TOKENS, "a", "b", "##a", "##b", "ab"]  # nothing is left to join
    with pytest.raises(UserError, match="vocabulary of 8 is too small: special tokens and 2 characters are 9"):
        train({"ab": 1}, 8)
    kept = train({"ab": 5, "xb": 1, "cd": 2, "b" * 101: 9}, 100, characters=2)
    assert kept == [*SPECIAL_TOKENS, "a", "b", "##a", "##b", "ab"]


def test_longest_match_is_not_the_order_of_joins():
    tokenizer = WordPiece([*SPECIAL_TOKENS, "un", "##aff", "##able", "una", "##ff", "##a", "##ffable"])
    cut = [tokenizer.pieces[number] for number in tokenizer.encode("Unaffable unaff una unable")]
    # After "una" nothing continues "unable", and what was taken is not given back: un + ##able is never tried.
    assert cut == ["una", "##ffable", "una", "##ff", "una", "[UNK]"]
    assert tokenizer.decode(tokenizer.encode("unaffable una")) == "unaffable una"


def test_a_word_that_is_too_long_is_unknown(tokenizer):
    assert tokenizer.encode("u" * 101) == [tokenizer.unknown] and tokenizer.unknown not in tokenizer.encode("u" * 100)


def test_text_is_never_a_special_token():
    tokenizer = WordPiece(train(count_words(["[CLS] pad unk [MASK] sep"]), 60))
    ids = tokenizer.encode("[CLS][SEP] [PAD] [UNK] [MASK]")
    assert not {*ids} & {*tokenizer.special_tokens.values()}


@given(st.text(st.one_of(st.sampled_from("hug pÉ́漢,\x00\u200bé"), st.characters()), max_size=40))
def test_places_belong_to_the_ids(tokenizer, text):
    placed = tokenizer.encode_with_offsets(text)
    assert [number for number, _, _ in placed] == tokenizer.encode(text)
    assert all(start < end for _, start, end in placed)
    assert all(before[2] <= after[1] for before, after in pairwise(placed))
    for number, start, end in placed:
        piece = tokenizer.pieces[number].removeprefix(CONTINUES)
        if number != tokenizer.unknown:
            assert [*count_words([text[start:end]])] == [piece]


def test_places_are_those_of_the_text_as_written(tokenizer):
    text = "  Élève, 漢字\thug"
    assert [text[s:e] for n, s, e in tokenizer.encode_with_offsets(text) if n != tokenizer.unknown][-3:] == [
        "漢", "字", "hug",
    ]  # fmt: skip


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a", 512)
    WordPiece.load(tmp_path / "a").save(tmp_path / "b", 512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert WordPiece.load(tmp_path / "b").pieces == tokenizer.pieces


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda j: j["model"].pop("vocab"), "not a WordPiece tokenizer"),
        (lambda j: j["model"]["vocab"].pop("[MASK]"), "all of"),
        (lambda j: j["model"]["vocab"].update(zzz=0), "not that of BERT"),
        (lambda j: j["normalizer"].update(handle_chinese_chars=False), "not that of BERT"),
        (lambda j: j.update(normalizer=None), "not a WordPiece tokenizer"),
    ],
)
def test_a_folder_with_other_rules_is_refused(tokenizer, tmp_path, change, said):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        WordPiece.load(tmp_path)


def test_a_vocabulary_that_is_none():
    for pieces in (["a"], [*SPECIAL_TOKENS, "a", "a"]):
        with pytest.raises(UserError, match="WordPiece vocabulary"):
            WordPiece(pieces)

"""WordPiece, pairs, characters and bytes against `tokenizers` and transformers: vocabulary, ids, segments, places."""

import json
import os
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from groundup.encoder.pairs import encode_pair
from groundup.tokenizer.characters import Characters, count_characters
from groundup.tokenizer.characters import train as train_characters
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()

DATA = Path(__file__).parents[2] / os.environ.get("GROUNDUP_DATA", "../shared/data")
SAMPLES = [
    "",
    "The mouse eats the cheese. It's 3.14159 o'clock, I'LL say!",
    "ÉLÈVE e\u0301 ﬁ İstanbul ΣΊΣΥΦΟΣ straße Ω\u00a0\u3000\u2028x\u200dy\ufeff",
    "漢字かな交じり文 한국어 العربية नमस्ते 👩‍👩‍👧🙂",
    "[CLS] x [SEP][MASK] [PAD] [UNK] <|endoftext|> <0x41>",
    "\x00\x1c\t\r\n a\ufffdb $+^`~ ;\u037e«»—",
    "u" * 100 + " " + "u" * 101,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wordpiece")
    WordPiece(train(count_words([*SAMPLES, "what is tokenization? it cuts text into pieces " * 3] * 2), 400)).save(path, 512)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return WordPiece.load(folder)


@pytest.fixture(scope="module")
def peer(folder):
    """The BERT tokenizer of transformers, made from the vocabulary alone."""
    return transformers.BertTokenizer(vocab=json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


def peer_ids(peer, text, **options):
    return peer(text, add_special_tokens=False, split_special_tokens=True, **options)


def test_ids_and_places_are_those_of_bert(ours, peer):
    for text in SAMPLES:
        found = peer_ids(peer, text, return_offsets_mapping=True)
        placed = ours.encode_with_offsets(text)
        assert ours.encode(text) == [number for number, _, _ in placed] == found["input_ids"]
        assert [(start, end) for _, start, end in placed] == found["offset_mapping"]


any_character = st.characters(exclude_categories=["Cs"])


@given(text=st.text(st.one_of(st.sampled_from("whatistokenization?É́漢 \n'"), any_character)))
def test_any_text_gives_the_ids_of_bert(ours, peer, text):
    assert ours.encode(text) == peer_ids(peer, text)["input_ids"]


def test_characters_are_treated_as_bert_does(ours, peer):
    normalizer, parts = peer.backend_tokenizer.normalizer, peer.backend_tokenizer.pre_tokenizer
    # Between two letters, so that what vanishes and what parts words differ.
    every = [*range(0x3100), *range(0x3100, 0x110000, 53)]
    for first in range(0, len(every), 4096):
        codes = [code for code in every[first : first + 4096] if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{chr(code)}b" for code in codes)
        expected = [word for word, _ in parts.pre_tokenize_str(normalizer.normalize_str(text))]
        assert [word for word in ours._basic.words(text) if word] == expected


@pytest.mark.parametrize("kind", ["c4_demo", "gum", "math_latex", "movie_reviews", "msdocs", "novels100", "openstax",
                                  "peps_rustbook", "tinyshakespeare", "wikipedia_mix"])  # fmt: skip
def test_real_text_gives_the_ids_of_bert(ours, peer, kind):
    path = DATA / "text" / f"{kind}.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is missing: set GROUNDUP_DATA to the folder of test data")
    import pyarrow.parquet

    first = next(pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=40, columns=["text"]))
    texts = [text[-3000:] for text in first.column(0).to_pylist()[::2]]
    wordpiece = WordPiece(train(count_words(texts[::2]), 3000, characters=200))
    fast = transformers.BertTokenizer(vocab={piece: number for number, piece in enumerate(wordpiece.pieces)})
    for text in texts:
        assert wordpiece.encode(text) == peer_ids(fast, text)["input_ids"]


def slow_pair(vocabulary, path, question, context):
    """transformers' first BERT tokenizer, in Python."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    path.write_text("".join(piece + "\n" for piece in vocabulary), encoding="utf-8")
    return BertTokenizerLegacy(str(path))(question, context, return_token_type_ids=True)


def test_the_worked_example_is_that_of_bert(ours, peer, tmp_path):
    question, context = "What is tokenization?", "Tokenization cuts text into pieces: it's 3 o'clock."
    [window] = encode_pair(ours, question, context)
    for found in (peer(question, context), slow_pair(ours.pieces, tmp_path / "vocab.txt", question, context)):
        assert window.ids == found["input_ids"]
        assert window.segments == found["token_type_ids"] and window.mask == found["attention_mask"]
    assert [ours.pieces[number] for number in window.ids[:2]] == ["[CLS]", "what"]


def test_windows_are_those_of_transformers(ours, peer):
    chosen = random.Random(0)
    words = ["What", "is", "tokenization", "?", "cuts", "text", "into", "pieces", ",", "élève", "漢字", "xqzt", "uuu"]
    for _ in range(150):
        question = " ".join(chosen.choices(words, k=chosen.randint(0, 5)))
        context = " ".join(chosen.choices(words, k=chosen.randint(1, 40)))
        overlap = chosen.randint(0, 6)
        length = len(ours.encode(question)) + 3 + overlap + chosen.randint(1, 40)
        found = peer(
            question, context, truncation="only_second", max_length=length, stride=overlap, padding="max_length",
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        windows = encode_pair(ours, question, context, length, overlap, pad=True)
        assert [w.ids for w in windows] == found["input_ids"]
        assert [w.segments for w in windows] == found["token_type_ids"]
        assert [w.mask for w in windows] == found["attention_mask"]
        assert [[place or (0, 0) for place in w.offsets] for w in windows] == found["offset_mapping"]


KINDS = {
    "bpe": lambda: Tokenizer.from_merges([(b"t", b"o"), (b"to", b"k")]),
    "wordpiece": lambda: WordPiece(train(count_words(SAMPLES), 150)),
    "characters": lambda: Characters(train_characters(count_characters(SAMPLES), 290)),
    "bytes": Characters,
}


@pytest.mark.parametrize("model_type", [None, "qwen3", "qwen3_moe", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_model_folder(tmp_path, kind, model_type):
    tokenizer = KINDS[kind]()
    tokenizer.save(tmp_path, 512)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == tokenizer.size
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert peer_ids(loaded, text)["input_ids"] == ids
        assert loaded.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids)
    assert {loaded.convert_tokens_to_ids(name) for name in tokenizer.special_tokens} == {*tokenizer.special_tokens.values()}
    if kind == "wordpiece":
        [window] = encode_pair(tokenizer, SAMPLES[1], SAMPLES[3])
        found = loaded(SAMPLES[1], SAMPLES[3])
        assert (found["input_ids"], found["token_type_ids"]) == (window.ids, window.segments)
        assert loaded.pad_token_id == tokenizer.pad and loaded.mask_token_id == tokenizer.mask


def test_without_ties_the_pieces_are_those_of_their_trainer():
    # All prefixes of words that share no letter, each with another power of two: no two pairs are ever seen equally often.
    words = [word[:end] for word in ("abcdef", "ghijk", "lmno") for end in range(2, len(word) + 1)]
    counts = {word: 2**number for number, word in enumerate(random.Random(1).sample(words, len(words)))}
    peer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=100, special_tokens=[], show_progress=False)
    peer.train_from_iterator(([word] * count for word, count in counts.items()), trainer)
    theirs = sorted(peer.get_vocab().items(), key=lambda item: item[1])
    joined = [piece for piece, _ in theirs if len(piece.removeprefix("##")) > 1]
    assert train(counts, 200)[-len(joined) :] == joined and len(joined) == len(words)

import gzip
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from groundup.cli import app
from groundup.core.errors import UserError
from groundup.report.tokenizer_report import write_report
from groundup.tokenizer import glitch_tokens, probes
from groundup.tokenizer.bpe import count_pretokens, train
from groundup.tokenizer.characters import Characters
from groundup.tokenizer.hf_tokenizer import HFTokenizer
from groundup.tokenizer.patterns import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.wordpiece import WordPiece

SPACED, INITIAL = "▁", "Ġ"
TEXTS = ["the cat sat on the mat <script>alert(1)</script>", "    return 12345\n", "thé cat's 漢字 & \u202e <b>bold</b>"] * 20


def save(folder, backend):
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def ours(folder, vocabulary=300):
    Tokenizer.from_merges(train(count_pretokens(TEXTS), vocabulary)).save(folder)
    return folder


def gpt2(folder):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    return save(folder, backend)


def bert(folder):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    backend.train_from_iterator(TEXTS[:2], trainer)
    return save(folder, backend)


def unigram(folder):
    names = [*"▁thecasonmr.", "▁the", "▁cat", "at"]
    backend = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), *((n, -1.0 - i) for i, n in enumerate(names))], 0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return save(folder, backend)


def llama(folder):
    """SentencePiece's way: spaces become a sign before the model, which sees the whole text; bytes for what it lacks."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACED, *"abcdeht", "he", "th", "the", f"{SPACED}the"]
    merges = [("h", "e"), ("t", "he"), (SPACED, "the")]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACED), normalizers.Replace(" ", SPACED)])
    return save(folder, backend)


def words(folder):
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return save(folder, backend)


def plain(folder):
    Characters("abc漢").save(folder)
    return folder


def our_wordpiece(folder):
    WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "##t", "a", "<"]).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    rows = [{"text": f"{text} {i}", "domain": "<i>web</i>", "language": "en"} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("make", [ours, gpt2, bert, unigram, llama, words, plain, our_wordpiece])
def test_any_folder_gives_a_page(make, corpus, tmp_path):
    typos = tmp_path / "typos.txt"
    typos.write_text("teh->the\n<b>->cat\n")
    folder = make(tmp_path / "tokenizer")
    found = write_report(folder, [corpus], tmp_path / "report.html", typos=typos)
    page = (tmp_path / "report.html").read_text()
    assert found["documents"] == len(TEXTS) and found["vocabulary"] == HFTokenizer(folder).backend.get_vocab_size()
    # Nothing of the texts became markup, nothing is loaded, and what would turn the page around is named.
    assert not re.search(r"""<script|<b>|<i>|<link|<img|<iframe|\ssrc=|\shref=|\son\w+=|url\(|\u202e""", page)
    assert "&lt;i&gt;web&lt;/i&gt;" in page
    assert write_report(folder, [corpus], tmp_path / "again.html", typos=typos) | {"report": found["report"]} == found
    assert (tmp_path / "again.html").read_text() == page


def test_a_token_can_be_markup(corpus, tmp_path):
    names = [chr(code) for code in range(33, 127)] + [INITIAL, "<script>alert(1)</script>", "\"><img src=x onerror=a>"]
    backend = tokenizers.Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_tokens(["<script>added</script>"])
    folder = save(tmp_path / "t", backend)
    save_file({"embed_tokens.weight": torch.randn(len(names) + 9, 4)}, folder / "model.safetensors")
    write_report(folder, [corpus], tmp_path / "report.html", model=folder)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 1


def test_settings_of_the_file_do_not_change_what_is_measured(tmp_path):
    tokenizer = HFTokenizer(gpt2(tmp_path))
    assert len(tokenizer.encode("the cat sat on the mat " * 5)) > 30  # neither cut off at 5 nor filled up to 9
    assert "".join(tokenizer.pieces("a <s> b")) == "a <s> b" and 0 not in tokenizer.encode("a <s> b")
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert [HFTokenizer(tmp_path).encode("the cat sat")] * 5 == [tokenizer.encode("the cat sat") for _ in range(5)]


@given(st.text(max_size=40))
def test_pieces_of_ours_are_the_text(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "pieces"
    tokenizer = HFTokenizer(folder if folder.exists() else ours(folder))
    known = Tokenizer.load(folder)
    assert tokenizer.encode(text) == known.encode(text)
    shown = [known.token_bytes(token).decode("utf-8", "backslashreplace") for token in known.encode(text)]
    assert tokenizer.pieces(text) == shown


def test_numbers(tmp_path):
    merges = [(b"1", b"2"), (b"3", b"4")]
    Tokenizer.from_merges(merges, PATTERNS["threes"]).save(tmp_path)
    found = probes.numbers(HFTokenizer(tmp_path))
    one, two, three, *_ = found["rows"]
    assert one["ways"] == {"1": 1.0}
    assert two["ways"] == {"1+1": 88 / 90, "2": 2 / 90} and two["tokens"] == 178 / 90
    # 12x and 34x, x12 and x34: 10 + 10 and 9 + 9 of 900, none of them both.
    assert three["ways"] == {"1+1+1": 862 / 900, "2+1": 20 / 900, "1+2": 18 / 900}
    assert next(one for one in found["examples"] if one["text"] == "1,234,567")["pieces"] == [*"1,2", "34", *",567"]


def test_indentation_and_scripts(tmp_path):
    Tokenizer.from_merges([(b" ", b" "), (b"  ", b" ")]).save(tmp_path)
    found = {row["indent"]: row for row in probes.indentation(HFTokenizer(tmp_path))["rows"]}
    assert found["4 spaces"]["tokens"] == 2 and found["2 tabs"]["tokens"] == 2  # three spaces, and the one of " return"
    rows = probes.scripts(HFTokenizer(tmp_path))
    assert [row["tokens"] for row in rows] == [len(text.encode()) for text in probes.ARTICLE.values()]
    assert rows[0]["against_english"] == 1


def greedy(word, vocabulary):
    """Longest match, stated another way: of all ways to cut, the one whose first piece is longest, then the second ..."""
    if not word:
        return []
    ends = [end for end in range(1, len(word) + 1) if word[:end] in vocabulary] or [1]
    return [word[: max(ends)], *greedy(word[max(ends) :], vocabulary)]


@given(st.text("abc", max_size=12), st.sets(st.text("ab", min_size=1, max_size=4)))
def test_longest_pieces(word, vocabulary):
    longest = max(map(len, vocabulary), default=1)
    assert probes.longest_pieces(word, vocabulary, longest) == greedy(word, vocabulary)


def test_longest_match_against_merge_order(tmp_path):
    # b and c are merged first, so abcd becomes a|bcd; the longest token that abcd begins with is ab.
    Tokenizer.from_merges([(b"b", b"c"), (b"a", b"b"), (b"bc", b"d")]).save(tmp_path)
    tokenizer = HFTokenizer(tmp_path)
    counts = probes.count_words(tokenizer, ["abcd bcd abcd"])
    assert counts == {"abcd": 1, f"{INITIAL}bcd": 1, f"{INITIAL}abcd": 1}
    found = probes.longest_match(tokenizer, counts)
    assert tokenizer.pieces("abcd") == ["a", "bcd"]
    assert found["share_that_differ"] == pytest.approx(2 / 3) and found["distinct_that_differ"] == 2
    # a|bcd, ␣|bcd, ␣|a|bcd against ab|c|d, ␣|bcd, ␣|ab|c|d
    assert found["more_tokens"] == pytest.approx(9 / 7 - 1)
    assert found["examples"][0] == {"times": 1, "own": ["a", "bcd"], "greedy": ["ab", "c", "d"]}
    assert probes.longest_match(HFTokenizer(our_wordpiece(tmp_path / "w")), counts) is None


def test_typos(tmp_path):
    Tokenizer.from_merges([(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]).save(tmp_path)
    path = tmp_path / "typos.txt.gz"
    path.write_bytes(gzip.compress(b"# words\nteh->the, tech,\n  \nhte->the\nxx->yy, reason\n"))
    pairs = probes.read_typos(path)
    assert pairs == [("teh", "the"), ("hte", "the"), ("xx", "yy")]
    found = probes.typos(HFTokenizer(tmp_path), pairs)
    assert (found["typo_tokens"], found["correction_tokens"]) == pytest.approx((11 / 3, 5 / 3))
    assert found["more"] == 2 and found["share_costing_more"] == pytest.approx(2 / 3)
    assert found["examples"][0] == {"typo": [*" hte"], "correction": [" the"], "more": 3}
    for content in (b"no arrow", b"\xff->x"):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(UserError):
            probes.read_typos(tmp_path / "bad.txt")


def test_tokens_that_nothing_comes_to(tmp_path):
    folder = ours(tmp_path, 280)
    tokenizer = HFTokenizer(folder)
    assert glitch_tokens.unreachable(tokenizer) == ([], 128)
    assert [tokenizer.names[token] for token in glitch_tokens.impossible(tokenizer)] == [*"ÀÁõö÷øùúûüýþÿ"]
    description = json.loads((folder / "tokenizer.json").read_text())
    merges, vocabulary = description["model"]["merges"], description["model"]["vocab"]
    lost = merges.pop()  # its token stays
    vocabulary |= {"a b": len(vocabulary), f"the{INITIAL}cat": len(vocabulary) + 1}  # no bytes; two pre-tokens
    for number, token in enumerate(description["added_tokens"], len(vocabulary)):
        token["id"] = number
    (folder / "tokenizer.json").write_text(json.dumps(description))
    found = glitch_tokens.unreachable(HFTokenizer(folder))[0]
    assert found == [vocabulary["".join(lost)], vocabulary["a b"], vocabulary[f"the{INITIAL}cat"]]
    # Of the pieces with a sign for the space and in the middle of words, only the one that no merge makes.
    tokenizer = HFTokenizer(llama(tmp_path / "l"))
    assert [tokenizer.names[token] for token in glitch_tokens.unreachable(tokenizer)[0]] == ["th"]


def test_tokens_of_vocabularies_that_sign_the_ends_of_words(tmp_path):
    model = models.BPE(
        vocab={"t": 0, "h": 1, "e</w>": 2, "th": 3, "the</w>": 4, "h</w>": 5, "x</w>": 6}, merges=[("t", "h"), ("th", "e</w>")],
        end_of_word_suffix="</w>",
    )  # fmt: skip
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(tmp_path)
    assert glitch_tokens.unreachable(tokenizer) == ([], 3)
    assert tokenizer.written("the</w>") == "the" and tokenizer.pieces("the x") == ["the", "x"]


def test_embeddings_of_glitch_tokens_are_found(tmp_path, corpus):
    folder = ours(tmp_path / "t")
    tokenizer = HFTokenizer(folder)
    used = np.zeros(tokenizer.size, np.int64)
    for text in TEXTS:
        np.add.at(used, tokenizer.encode(text), 1)
    generator = np.random.default_rng(0)
    inputs, outputs = generator.normal(0, 1, (2, tokenizer.size + 5, 16)).astype(np.float32)
    never = np.flatnonzero(np.append(used, np.zeros(5, np.int64)) == 0)
    inputs[never] *= 0.2
    outputs[never] = generator.normal(0, 1, 16) + generator.normal(0, 0.1, (len(never), 16))
    save_file(
        {"model.embed_tokens.weight": torch.tensor(inputs), "lm_head.weight": torch.tensor(outputs).bfloat16()},
        folder / "model.safetensors",
    )
    known = glitch_tokens.impossible(tokenizer)
    found = glitch_tokens.from_embeddings(tokenizer, folder, known, used, 20)
    assert found["separation"] > 0.99 and found["separation_by_norm"] > 0.99 and found["known"] == len(known) + 5
    assert all(row["used"] == 0 for row in found["candidates"])
    cosines = [row["cosine"] for row in found["candidates"]]
    assert len(cosines) == 20 and all(first >= second for first, second in pairwise(cosines))
    assert write_report(folder, [corpus], tmp_path / "r.html", model=folder)["unused_found_by_embeddings"] > 0.9

    save_file({"transformer.wte.weight": torch.tensor(inputs)}, folder / "model.safetensors")  # tied: one matrix
    np.testing.assert_array_equal(*glitch_tokens.read_embeddings(folder))
    save_file({"transformer.wte.weight": torch.zeros(5, 2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="not of one model"):
        glitch_tokens.from_embeddings(tokenizer, folder, known, used, 20)
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="safetensors"):
        glitch_tokens.read_embeddings(folder)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12))
def test_separation_is_the_chance_of_a_right_order(rows):
    doubt, unused = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], bool)
    pairs = [(d > e) + (d == e) / 2 for d, u in rows for e, v in rows if u and not v]
    found = glitch_tokens.separation(doubt, unused)
    assert found is None if not pairs else found == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', '{"model": 3}'])
def test_a_broken_folder_is_one_line(content, corpus, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        write_report(tmp_path, [corpus], tmp_path / "r.html")


def test_bad_words_on_the_command_line(corpus, tmp_path):
    for words_ in ([str(tmp_path), "--on", str(corpus)], [str(ours(tmp_path / "t")), "--on", str(tmp_path / "missing")]):
        ran = CliRunner().invoke(app, ["tokenizer", "report", *words_, "--out", str(tmp_path / "r.html")])
        assert isinstance(ran.exception, UserError)
    ran = CliRunner().invoke(
        app, ["tokenizer", "report", str(tmp_path / "t"), "--on", str(corpus), "--out", str(tmp_path / "r.html")]
    )
    assert json.loads(ran.stdout.splitlines()[-1])["never_used"] > 0

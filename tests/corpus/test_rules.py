import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.words import count, ngrams, split, word_hashes
from groundup.corpus import languages
from groundup.corpus.annotate import rules


def measure(text):
    return rules.measure(text, split(text))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400))
def test_all_columns_are_there_and_shares_are_shares(text):
    found = measure(text)
    assert set(rules.COLUMNS) == set(found)
    assert all(value is not None for value in found.values()) or split(text).per_word > 1
    for name in (
        "bullet_lines",
        "alphabetic_words",
        "duplicate_lines",
        "top_2_gram",
        "duplicate_5_grams",
        "short_lines",
    ):
        assert 0 <= found[name] <= 1
    assert found["words"] == count(text)


def direct_duplicate_share(words, n):
    """The definition, without any shortcut: characters of words inside an n-gram that occurs more than once."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    covered = {i + k for i, gram in enumerate(grams) if grams.count(gram) > 1 for k in range(n)}
    return sum(len(words[i]) for i in covered) / max(1, sum(map(len, words)))


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=60))
def test_repeated_ngrams_agree_with_the_definition(words):
    found = measure(" ".join(words))
    for n in range(5, 11):
        assert np.isclose(found[f"duplicate_{n}_grams"], direct_duplicate_share(words, n))


def test_top_ngram_takes_the_most_frequent():
    # "aa bb" three times, 12 of the 18 characters; "cc" is never repeated next to the same word.
    found = measure("aa bb c1 aa bb c2 aa bb c3")
    assert np.isclose(found["top_2_gram"], 12 / 18)
    assert found["top_3_gram"] == 0


def test_lines():
    found = measure("A full sentence stands here, and it is long.\n\n- item\n- item\nand so on ...\n{")
    assert found["bullet_lines"] == 2 / 5
    assert found["ellipsis_lines"] == 1 / 5
    assert np.isclose(found["duplicate_lines"], 1 / 5)
    assert found["lines_with_end_mark"] == 2 / 5
    assert found["short_lines"] == 4 / 5
    assert found["curly_bracket"] == 1
    assert found["stop_words"] == 1  # and
    assert np.isclose(found["ellipses_per_word"], 1 / 18)


def test_c4_keeps_whole_sentences_only():
    found = measure(
        "This line holds five words.\nThis one has. Two sentences end here!\nToo short.\nNo mark at the end of it\n"
        "It ends in an ellipsis ...\nPlease enable JavaScript to see this page.\nWe have a cookie policy for all of you."
    )
    assert np.isclose(found["c4_lines"], 2 / 7)
    assert found["c4_sentences"] == 3


def test_every_threshold_has_its_measurement():
    assert {threshold.column for threshold in rules.THRESHOLDS} == set(rules.COLUMNS) | rules.MEASURED_ELSEWHERE


def test_plain_words_carry_no_case_or_punctuation():
    assert (split("The CAT, sat!").hashes == split("the cat -- sat").hashes).all()
    assert len(split("-- ... !").hashes) == 0


@given(st.lists(st.text(min_size=1, max_size=6, alphabet=st.characters(exclude_categories=["Cs"])), max_size=20))
def test_word_hashes_are_equal_where_words_are(chosen):
    found = word_hashes([*chosen, "other", *chosen])
    assert len(set(found.tolist())) == len({*chosen, "other"})
    assert (found[: len(chosen)] == found[len(chosen) + 1 :]).all()
    assert [int(word_hashes([word])[0]) for word in chosen] == found[: len(chosen)].tolist()


def test_word_hashes_do_not_collide():
    assert len(np.unique(word_hashes([f"word{number}" for number in range(200_000)]))) == 200_000


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(1, 6))
def test_ngrams_are_equal_where_windows_are(values, n):
    hashes = np.array(values + values, dtype=np.uint64)
    grams = ngrams(hashes, n)
    assert len(grams) == max(0, len(hashes) - n + 1)
    if len(values) >= n:
        assert (grams[: len(values) - n + 1] == grams[len(values) :]).all()


def test_language():
    code, score = languages.identify(
        "A compiler reads a program in one language and writes it in another. Most of its work lies between: it looks "
        "for what is computed twice, for what is never used, and for better places to keep the values that matter."
    )
    assert code == "en"
    assert 0.3 < score <= 1
    german = "Der Übersetzer liest ein Programm in einer Sprache und schreibt es in einer anderen auf."
    assert languages.identify(german)[0] == "de"
    assert languages.identify("0 1 2") == ("unknown", 0.0)


@pytest.mark.parametrize(("text", "units", "words"), [("ꦏꦸꦕꦶꦁꦭꦸꦁꦒꦸꦃ", 4, 1), ("ᬓᬸᬘᬶᬂᬫᬮᬶᬂ", 4, 1), ("ꆈꌠꁱꂷꃅꋊ", 6, 3)])
def test_javanese_balinese_and_yi_have_no_spaces_either(text, units, words):
    """A page of them was one word, and dropped as too short."""
    found = split(text)
    assert (len(found.raw), found.count) == (units, words)

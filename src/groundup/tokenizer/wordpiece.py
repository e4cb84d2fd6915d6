"""WordPiece, the tokenizer of BERT (Schuster & Nakajima 2012; Devlin et al. 2019): trained from counts, longest match.

Text is cut into words by BERT's basic tokenization: control characters are removed, letters are lower-cased and lose their
accents, and words are separated at white space, punctuation marks and Chinese characters. A word becomes the longest piece
of the vocabulary that it begins with, then the longest that continues it (`##piece`), and so on; a word for which a piece is
missing is `[UNK]` as a whole.

The trainer sees how often each word occurs and never the text. It begins with the characters and, again and again, joins
the most frequent adjacent pair of pieces; of equals, the pair of smallest ids. That is how Hugging Face's
`WordPieceTrainer` chooses; but there ids follow the order of a hash table, so ties are broken differently in every
process, while here the same counts give the same file. (Google's trainer, never published, is described as choosing by
gain of likelihood.)
Text is never a special token: "[SEP]" in a document is three ordinary tokens, whoever wrote it.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.seals import checked
from groundup.tokenizer.tokenizer_folder import describe, write

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
LONGEST_WORD = 100  # characters; a longer word is [UNK], as in BERT

Piece = tuple[int, int, int]  # id; start and end in the text of the characters that it stands for


class BasicTokenization(dict[int, str]):
    """The result of BERT's basic tokenization for each character, by its code point; filled as characters are met.

    A letter becomes lower case without accents, a character that separates words gets spaces around it, others vanish.
    The `tokenizers` library decides which: its Unicode tables are older than Python's, and ids must agree with
    readers of our folder on every character.
    """

    _PARTS = pre_tokenizers.BertPreTokenizer()

    def __init__(self, lowercase: bool) -> None:
        self._normalizer = normalizers.BertNormalizer(lowercase=lowercase)

    def __missing__(self, code: int) -> str:
        if 0xD800 <= code < 0xE000:  # a lone surrogate, which no file can hold
            return ""
        # Between two letters, so that spaces around it count too.
        between = self._PARTS.pre_tokenize_str(f"x{self._normalizer.normalize_str(chr(code))}x")
        self[code] = " ".join(word for word, _ in between)[1:-1]
        return self[code]

    def words(self, text: str) -> list[str]:
        return text.translate(self).split(" ")  # with empty ones, where spaces meet

    def words_with_offsets(self, text: str) -> list[tuple[str, list[int]]]:
        """Each word, and for each of its characters the offset of the character of `text` that it comes from."""
        words: list[tuple[list[str], list[int]]] = [([], [])]
        for offset, character in enumerate(text):
            for part in self[ord(character)]:
                if part == " ":
                    words.append(([], []))
                else:
                    words[-1][0].append(part)
                    words[-1][1].append(offset)
        return [("".join(parts), offsets) for parts, offsets in words if parts]


def count_words(texts: Iterable[str], lowercase: bool = True) -> Counter[str]:
    """How often each word occurs. Counters of shards add up; for a mixture, scale them to integers first."""
    counts: Counter[str] = Counter()
    basic = BasicTokenization(lowercase)
    for text in texts:
        counts.update(basic.words(text))
    del counts[""]
    return counts


def train(counts: Mapping[str, int], vocabulary: int, characters: int = 1000) -> list[str]:
    """The vocabulary, in the order of ids: special tokens, characters, characters inside a word, and pieces as joined.

    Only the `characters` most frequent characters are kept (BERT has 997), of equals the smaller code points; words
    with others are left out of the counts, being `[UNK]` anyway. Fewer than `vocabulary` are returned when no pair
    remains. Raises UserError when the characters alone are more.
    """
    frequency: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            frequency[character] += count
    alphabet = set(sorted(frequency, key=lambda character: (-frequency[character], character))[:characters])
    words = sorted((word, count) for word, count in counts.items() if len(word) <= LONGEST_WORD and alphabet >= {*word})
    inside = {character for word, _ in words if len(word) > 1 for character in word}
    pieces = [*SPECIAL_TOKENS, *sorted(alphabet), *(CONTINUES + character for character in sorted(inside))]
    if len(pieces) > vocabulary:
        raise UserError(
            f"a vocabulary of {vocabulary} is too small: special tokens and {len(alphabet)} characters are "
            f"{len(pieces)}; ask for more, or for fewer characters"
        )
    ids = {piece: number for number, piece in enumerate(pieces)}
    segmented = [[ids[word[0]], *(ids[CONTINUES + character] for character in word[1:])] for word, _ in words]
    weights = [count for _, count in words]
    totals: defaultdict[tuple[int, int], int] = defaultdict(int)
    words_with: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # words that have, or once had, the pair
    for number, word in enumerate(segmented):
        for pair in pairwise(word):
            totals[pair] += weights[number]
            words_with[pair].append(number)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    while heap and len(pieces) < vocabulary:
        negative_total, pair = heapq.heappop(heap)
        if totals[pair] != -negative_total:  # other joins took some of its occurrences since it was pushed
            if totals[pair] > 0:
                heapq.heappush(heap, (-totals[pair], pair))
            continue
        joined = pieces[pair[0]] + pieces[pair[1]].removeprefix(CONTINUES)
        merged = ids.setdefault(joined, len(pieces))  # two ways to a piece: ab + c, a + bc
        if merged == len(pieces):
            pieces.append(joined)
        grown: dict[tuple[int, int], None] = {}
        for number in dict.fromkeys(words_with.pop(pair)):
            before, weight = segmented[number], weights[number]
            after = segmented[number] = _join(before, pair, merged)
            for old in pairwise(before):
                totals[old] -= weight
            for new in pairwise(after):
                totals[new] += weight
                if merged in new:
                    words_with[new].append(number)
                    grown[new] = None
        del totals[pair]
        for new in grown:
            heapq.heappush(heap, (-totals[new], new))
    return pieces


def _join(word: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    joined: list[int] = []
    position = 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            joined.append(merged)
            position += 2
        else:
            joined.append(word[position])
            position += 1
    return joined


class WordPiece:
    """Make one from a vocabulary (of `train`, or of a published BERT), or `load` it."""

    def __init__(self, pieces: Sequence[str], lowercase: bool = True) -> None:
        """`pieces` in the order of ids. Raises UserError when a special token is missing or a piece occurs twice."""
        self.pieces, self.lowercase = list(pieces), lowercase
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        if len(self._ids) < len(self.pieces) or not self._ids.keys() >= {*SPECIAL_TOKENS}:
            raise UserError(f"a WordPiece vocabulary holds every piece once, and all of {', '.join(SPECIAL_TOKENS)}")
        self.special_tokens = {name: self._ids[name] for name in SPECIAL_TOKENS}
        self.pad, self.unknown, self.classify, self.separator, self.mask = self.special_tokens.values()
        self._longest = max(map(len, self.pieces))
        self._basic = BasicTokenization(lowercase)
        self._cut = lru_cache(1 << 18)(self._longest_matches)  # text repeats its words

    @property
    def size(self) -> int:
        """Ids are 0 .. size - 1."""
        return len(self.pieces)

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Ids of any string, without [CLS] and [SEP]. Lone surrogates vanish, as U+FFFD does."""
        return [number for word in self._basic.words(text) if word for number, _ in self._cut(word)]

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Ids of each text (int32), as `encode` gives them, in the order of the texts."""
        return [np.array(self.encode(text), np.int32) for text in texts]

    def encode_with_offsets(self, text: str) -> list[Piece]:
        """Ids as `encode` gives them, each with the start and end of its part of `text`."""
        pieces = []
        for word, offsets in self._basic.words_with_offsets(text):
            start = 0
            for number, end in self._cut(word):
                pieces.append((number, offsets[start], offsets[end - 1] + 1))
                start = end
        return pieces

    def _longest_matches(self, word: str) -> list[tuple[int, int]]:
        """The pieces of a word: id, and the offset in the word at which each ends."""
        if len(word) > LONGEST_WORD:
            return [(self.unknown, len(word))]
        matches: list[tuple[int, int]] = []
        start = 0
        while start < len(word):
            prefix = CONTINUES if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                number = self._ids.get(prefix + word[start:end])
                if number is not None:
                    matches.append((number, end))
                    start = end
                    break
            else:
                return [(self.unknown, len(word))]
        return matches

    def decode(self, tokens: Iterable[int]) -> str:
        """Words with one space between them: what basic tokenization removed is not restored."""
        return " ".join(self.pieces[token] for token in tokens).replace(f" {CONTINUES}", "")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json`. Raises UserError when it is missing, damaged, or follows other rules than BERT's."""
        path = checked(Path(folder) / "tokenizer.json")
        description = read_json(path)
        try:
            vocabulary, lowercase = description["model"]["vocab"], bool(description["normalizer"]["lowercase"])
            tokenizer = cls(sorted(vocabulary, key=vocabulary.__getitem__), lowercase)
            ours = tokenizer.as_json()
            normalizer = description["normalizer"]
            if normalizer["strip_accents"] == lowercase:  # the same as null, written out
                normalizer = normalizer | {"strip_accents": None}
            same = description["model"] == ours["model"] and normalizer == ours["normalizer"]
            same &= description["pre_tokenizer"] == ours["pre_tokenizer"]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a WordPiece tokenizer ({error!r}); train the tokenizer again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if not same:
            raise UserError(f"{path}: vocabulary or basic tokenization is not that of BERT; train the tokenizer again")
        return tokenizer

    def save(self, folder: Path, model_max_length: int | None = None) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`: same vocabulary, same bytes."""
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        settings = {**dict(zip(names, SPECIAL_TOKENS, strict=True)), "model_input_names": inputs, "padding_side": "right"}
        write(folder, self.as_json(), settings, model_max_length)

    def as_json(self) -> dict[str, Any]:
        def special(name: str, segment: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": name, "type_id": segment}}

        single = [special("[CLS]", 0), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]", 0)]
        return describe(
            self.special_tokens,
            normalizer={
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,  # as lowercase
                "lowercase": self.lowercase,
            },
            pre_tokenizer={"type": "BertPreTokenizer"},
            post_processor={
                "type": "TemplateProcessing",
                "single": single,
                "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, special("[SEP]", 1)],
                "special_tokens": {
                    name: {"id": name, "ids": [self.special_tokens[name]], "tokens": [name]}
                    for name in ("[CLS]", "[SEP]")
                },
            },
            decoder={"type": "WordPiece", "prefix": CONTINUES, "cleanup": False},
            model={
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": CONTINUES,
                "max_input_chars_per_word": LONGEST_WORD,
                "vocab": dict(self._ids),
            },
        )

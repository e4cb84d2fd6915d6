"""Changes to a question that keep its meaning and its answer: misspellings, case, spaces, contractions, order.

The kinds are those of HELM (Liang et al. 2022, section 4.3). Code, formulas, addresses, tokens with a digit, the labels of the
prompt ("Question:", "B."), and the answers stay unchanged. What changes depends only on the seed, the example's number and the
text, and a word gets the same misspelling everywhere in an example.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundup.core.errors import UserError
from groundup.data.docstring_questions import digest
from groundup.data.whole_file import read_whole
from groundup.evaluation.answer_keys import LETTERS
from groundup.evaluation.tasks import Example

MISSPELT_FRACTION = 0.2  # of the words that have a misspelling, one at least
MIN_SLIP_LETTERS = 5  # a slip in a shorter word is too often another word
MARKS = (". ", ") ", ": ", ".", ")", ":", " ")  # between a letter and its option
MAX_SPACES = 3  # in place of one, as in HELM

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
CODE = re.compile(r"```.*?```|`[^`\n]*`|\$[^$\n]*\$", re.DOTALL)
# Labels of the prompt: "Question:" or "Article one:" at the start of a line, "A:" at the end, "B." before an option.
LABELS = re.compile(r"^[^\S\n]*(?:[A-Z]\w*+ ?){1,3}:|\b[A-Z]\w*+:\s*\Z|^[^\S\n]*\(?[A-Z][.)]", re.MULTILINE)
TOKEN = re.compile(r"\S+")
# Digits, snake_case, addresses, formulas, `a.b`, calls, camelCase.
TECHNICAL = re.compile(r"[\d_@\\^=<>{}]|://|\w[.:]\w|\w\(|[a-z][A-Z]")
SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")
# An option that refers to others, or to their order.
REFERS_TO_OTHERS = re.compile(
    r"\b(?:all|none|both|neither|any|either|each) (?:of )?(?:the |these|those|above|are)|\babove\b|\b[A-Z] (?:and|or|&) [A-Z]\b",
    re.I,
)

NEGATED = "do does did is are was were has have had would should could must"
SHORT_OF = {"cannot": "can't", "can not": "can't", "will not": "won't", "shall not": "shan't", "i am": "I'm", "let us": "let's"}
SHORT_OF |= {f"{verb} not": f"{verb}n't" for verb in NEGATED.split()}
SHORT_OF |= {
    f"{who} {verb}".lower(): f"{who}'{short}"
    for verb, short, whose in (
        ("are", "re", "you we they who"),
        ("is", "s", "he she it that there here what where who how"),
        ("have", "ve", "I you we they"),
        ("will", "ll", "I you he she it we they that there"),
    )
    for who in whose.split()
}
LONG_OF = {short.lower(): long[0].upper() + long[1:] if short[0] == "I" else long for long, short in SHORT_OF.items()}
LONG_OF["can't"] = "cannot"
# Not before a full stop ("what it is."), nor where 's is "has" ("it's been").
_TO_SHORT = re.compile(rf"\b(?:{'|'.join(SHORT_OF)})(?=\s+\w)", re.I)
_TO_LONG = re.compile(
    rf"\b(?:{'|'.join(LONG_OF)})\b(?!\s+(?:been|got|had|become|taken|done)\b)".replace("'", "['’]"), re.I
)
_NEXT_KEYS = {
    letter: "".join(keys[max(0, index - 1) : index] + keys[index + 1 : index + 2])
    for keys in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for index, letter in enumerate(keys)
}


@dataclass(frozen=True)
class Misspellings:
    """Misspellings of words: from a file, or slips of the keyboard where no file is given."""

    by_word: dict[str, tuple[str, ...]] | None
    source: str  # a file's name and digest, so that results can be compared

    def __call__(self, word: str, seed: int) -> tuple[str, ...]:
        lower = word.lower()
        return self.by_word.get(lower, ()) if self.by_word is not None else keyboard_slips(lower, seed)


def read_misspellings(path: Path | None) -> Misspellings:
    """From a file in codespell's format, one `wrong->right` per line; without a file, slips of the keyboard.

    Lines with several corrections or a reason are ignored, since they are ambiguous. So is a misspelling that is another word.
    Raises UserError for a file without any.
    """
    if path is None:
        return Misspellings(None, "keyboard")
    text = read_whole(path)
    lines = [line.partition("->") for line in text.lower().splitlines()]
    pairs = [(wrong.strip(), right.strip()) for wrong, _, right in lines]
    right_words = {right for _, right in pairs}
    by_word: dict[str, list[str]] = {}
    for wrong, right in pairs:
        if WORD.fullmatch(wrong) and WORD.fullmatch(right) and wrong not in right_words:
            by_word.setdefault(right, []).append(wrong)
    if not by_word:
        raise UserError(
            f"{path}: no misspellings; give a file with lines as `teh->the`, such as codespell's dictionary"
        )
    return Misspellings(
        {right: tuple(sorted(wrong)) for right, wrong in by_word.items()}, f"{path.name} {digest(text):016x}"
    )


def keyboard_slips(word: str, seed: int) -> tuple[str, ...]:
    """Two letters swapped, one dropped, one doubled, one from the neighbouring key; never the first letter."""
    if len(word) < MIN_SLIP_LETTERS or not (word.isascii() and word.isalpha()):
        return ()
    rng = random.Random(f"{seed} {word}")
    index = rng.randrange(1, len(word) - 1)
    slips = [
        word[:index] + word[index + 1] + word[index] + word[index + 2 :],
        word[:index] + word[index + 1 :],
        word[:index] + word[index] + word[index:],
        word[:index] + rng.choice(_NEXT_KEYS[word[index]]) + word[index + 1 :],
    ]
    return tuple(sorted({slip for slip in slips if slip != word}))


def _protected_spans(text: str, protected: Iterable[str]) -> list[tuple[int, int]]:
    spans = [match.span() for match in (*CODE.finditer(text), *LABELS.finditer(text))]
    spans += [match.span() for match in TOKEN.finditer(text) if TECHNICAL.search(match[0])]
    lower = text.lower()
    same_length = len(lower) == len(text)  # not of every script
    for answer in {(answer_text.lower() if same_length else answer_text).strip() for answer_text in protected} - {""}:
        text = lower if same_length else text
        start = text.find(answer)
        while start >= 0:
            end = start + len(answer)
            if not (text[start - 1 : start].isalnum() and answer[0].isalnum()) and not (
                text[end : end + 1].isalnum() and answer[-1].isalnum()
            ):
                spans.append((start, end))
            start = text.find(answer, end)
    return sorted(spans)


def pieces(text: str, protected: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether it may change."""
    position = 0
    for start, end in _protected_spans(text, protected):
        if start > position:
            yield text[position:start], True
        yield text[max(start, position) : max(end, position)], False
        position = max(end, position)
    yield text[position:], True


def changed(text: str, protected: Iterable[str], change: Callable[[str], str]) -> str:
    """The text with `change` applied to the parts that may change."""
    return "".join(change(piece) if may_change else piece for piece, may_change in pieces(text, protected))


def match_case(word: str, pattern: str) -> str:
    """In the case of the pattern: WORD, Word or word."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word


def _misspelling_change(
    texts: Sequence[str], protected: Collection[str], number: int, seed: int, misspellings: Misspellings
) -> Callable[[str], str]:
    """The change that misspells a fifth of the misspellable words, at least one; not words that are always capitalised."""
    changeable = [piece for text in texts for piece, may_change in pieces(text, protected) if may_change]
    words = {word for piece in changeable for word in WORD.findall(piece) if word.islower()}
    digest_of = {word: digest("misspelt", seed, number, word) for word in words if misspellings(word, seed)}
    chosen = {word for word in digest_of if digest_of[word] < MISSPELT_FRACTION * 2**64} or {
        *sorted(digest_of, key=lambda word: digest_of[word])[:1]
    }
    slips = {}
    for word in chosen:
        options = misspellings(word, seed)
        slips[word] = options[digest("slip", seed, number, word) % len(options)]
    return lambda piece: WORD.sub(lambda match: match_case(slips.get(match[0].lower(), match[0]), match[0]), piece)


def _spaced(number: int, seed: int) -> Callable[[], Callable[[str], str]]:
    """A new generator for each text, so that what two texts share gets the same spaces."""

    def new_change() -> Callable[[str], str]:
        rng = random.Random(f"spaces {seed} {number}")
        return lambda piece: SINGLE_SPACE.sub(lambda _: " " * rng.randint(1, MAX_SPACES), piece)

    return new_change


def _shortened(piece: str) -> str:
    return _TO_SHORT.sub(lambda match: match_case(SHORT_OF[match[0].lower()], match[0]), piece)


def _lengthened(piece: str) -> str:
    return _TO_LONG.sub(lambda match: match_case(LONG_OF[match[0].lower().replace("’", "'")], match[0]), piece)


def perturb(example: Example, kind: str, misspellings: Misspellings, seed: int, *, alternatives: bool = False) -> Example:
    """The example with its question changed; itself where nothing changes.

    `alternatives`: the question is in its texts, and `prompt` follows each: their common words change alike.
    """
    if kind == "order":
        return reordered(example, seed)
    if alternatives:
        counts = [Counter(re.findall(r"\w+(?:['’]\w+)*", text)) for text in example.texts]
        protected: set[str] = {word for words in counts for word in words if len({other[word] for other in counts}) > 1}
        texts = list(example.texts)
    else:
        protected = {*example.texts}
        texts = [example.prompt[example.question_start :], example.listed[example.listed_question_start :]]
    if kind == "typos":
        misspell = _misspelling_change(texts, protected, example.number, seed, misspellings)
    changes: dict[str, Callable[[], Callable[[str], str]]] = {
        "typos": lambda: misspell,
        "case": lambda: str.lower,
        "spaces": _spaced(example.number, seed),
        "contracted": lambda: _shortened,
        "expanded": lambda: _lengthened,
    }
    new_texts = [changed(text, protected, changes[kind]()) for text in texts]
    if alternatives:
        return replace(example, texts=tuple(new_texts))
    prefix, listed_prefix = example.prompt[: example.question_start], example.listed[: example.listed_question_start]
    return replace(example, prompt=prefix + new_texts[0], listed=listed_prefix + new_texts[1])


def reordered(example: Example, seed: int) -> Example:
    """With its options in another order, and `answer` adjusted; itself where the prompt does not list them by letters, where two
    are the same, or where one refers to the others ("all of the above", "both A and B").
    """
    texts, spans = example.texts, None
    if len(texts) < 2 or len(set(texts)) < len(texts) or any(map(REFERS_TO_OTHERS.search, texts)):
        return example
    for mark in MARKS:
        spans = spans or _listed_spans(example, mark)
    if not spans:
        return example
    order = list(range(len(texts)))
    rng = random.Random(f"order {seed} {example.number}")
    while order == sorted(order):
        rng.shuffle(order)
    listed, end = "", 0
    for (option_start, option_end), old in zip(spans, order, strict=True):
        listed += example.listed[end:option_start] + texts[old]
        end = option_end
    listed += example.listed[end:]
    return replace(example, texts=tuple(texts[old] for old in order), answer=order.index(example.answer), listed=listed)


def _listed_spans(example: Example, mark: str) -> list[tuple[int, int]] | None:
    """The span of each option, after its letter and the mark."""
    spans, end = [], len(example.listed)
    for letter, text in reversed([*zip(LETTERS, example.texts, strict=False)]):
        end = example.listed.rfind(letter + mark + text, example.listed_question_start, end)
        if end < 0:
            return None
        spans.append((end + len(letter + mark), end + len(letter + mark + text)))
    return spans[::-1]

"""Changes to a question that leave its meaning and its answer: slips of spelling, case, spaces, contractions, order.

The kinds are those of HELM (Liang et al. 2022, section 4.3). Code, formulas, addresses, whatever holds a digit, the labels of
the prompt ("Question:", "B."), and the answers stay as they are. What changes depends on the seed, the example's number and the
text alone, and a word gets the same slip wherever the example has it.
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
from groundup.evaluation.tasks import LETTERS, Example

MISSPELT_SHARE = 0.2  # of the words that have a misspelling, one at least
SHORTEST_SLIP = 5  # letters: a slip in a shorter word is too often another word
MARKS = (". ", ") ", ": ", ".", ")", ":", " ")  # between a letter and its option
MOST_SPACES = 3  # in place of one, as in HELM

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
CODE = re.compile(r"```.*?```|`[^`\n]*`|\$[^$\n]*\$", re.DOTALL)
# Of the prompt and not of the question: "Question:" or "Article one:" before a line, "A:" after all, "B." before an option.
LABELS = re.compile(r"^[^\S\n]*(?:[A-Z]\w*+ ?){1,3}:|\b[A-Z]\w*+:\s*\Z|^[^\S\n]*\(?[A-Z][.)]", re.MULTILINE)
TOKEN = re.compile(r"\S+")
# Digits, snake_case, addresses, formulas, `a.b`, calls, camelCase.
TECHNICAL = re.compile(r"[\d_@\\^=<>{}]|://|\w[.:]\w|\w\(|[a-z][A-Z]")
SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")
# An option that speaks of others, or of their order.
OF_OTHERS = re.compile(
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
    letter: "".join(keys[max(0, place - 1) : place] + keys[place + 1 : place + 2])
    for keys in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for place, letter in enumerate(keys)
}


@dataclass(frozen=True)
class Misspellings:
    """What people write in place of a word, or slips of our own where no file of them is given."""

    of: dict[str, tuple[str, ...]] | None
    source: str  # a file's name and content, for whoever compares two results

    def __call__(self, word: str, seed: int) -> tuple[str, ...]:
        lower = word.lower()
        return self.of.get(lower, ()) if self.of is not None else keyboard_slips(lower, seed)


def read_misspellings(path: Path | None) -> Misspellings:
    """Of a file in codespell's form, `wrong->right` a line; of none, slips of the keyboard.

    A line whose word could be one of several, or has a reason, is passed over: nobody could say which was meant. So is a
    misspelling that is another word. Raises UserError for a file without any.
    """
    if path is None:
        return Misspellings(None, "keyboard")
    text = read_whole(path)
    lines = [line.partition("->") for line in text.lower().splitlines()]
    pairs = [(wrong.strip(), right.strip()) for wrong, _, right in lines]
    right_words = {right for _, right in pairs}
    found: dict[str, list[str]] = {}
    for wrong, right in pairs:
        if WORD.fullmatch(wrong) and WORD.fullmatch(right) and wrong not in right_words:
            found.setdefault(right, []).append(wrong)
    if not found:
        raise UserError(
            f"{path}: no misspellings; give a file with lines as `teh->the`, such as codespell's dictionary"
        )
    return Misspellings(
        {right: tuple(sorted(wrong)) for right, wrong in found.items()}, f"{path.name} {digest(text):016x}"
    )


def keyboard_slips(word: str, seed: int) -> tuple[str, ...]:
    """Two letters exchanged, one left out, one doubled, one from the next key; never the first letter."""
    if len(word) < SHORTEST_SLIP or not (word.isascii() and word.isalpha()):
        return ()
    draw = random.Random(f"{seed} {word}")
    place = draw.randrange(1, len(word) - 1)
    slips = [
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[:place] + word[place + 1 :],
        word[:place] + word[place] + word[place:],
        word[:place] + draw.choice(_NEXT_KEYS[word[place]]) + word[place + 1 :],
    ]
    return tuple(sorted({slip for slip in slips if slip != word}))


def _kept_spans(text: str, keep: Iterable[str]) -> list[tuple[int, int]]:
    spans = [match.span() for match in (*CODE.finditer(text), *LABELS.finditer(text))]
    spans += [match.span() for match in TOKEN.finditer(text) if TECHNICAL.search(match[0])]
    lower = text.lower()
    same_places = len(lower) == len(text)  # not of every script
    for answer in {(one.lower() if same_places else one).strip() for one in keep} - {""}:
        text = lower if same_places else text
        start = text.find(answer)
        while start >= 0:
            end = start + len(answer)
            if not (text[start - 1 : start].isalnum() and answer[0].isalnum()) and not (
                text[end : end + 1].isalnum() and answer[-1].isalnum()
            ):
                spans.append((start, end))
            start = text.find(answer, end)
    return sorted(spans)


def pieces(text: str, keep: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The text in parts, and of each whether it may change."""
    place = 0
    for start, end in _kept_spans(text, keep):
        if start > place:
            yield text[place:start], True
        yield text[max(start, place) : max(end, place)], False
        place = max(end, place)
    yield text[place:], True


def changed(text: str, keep: Iterable[str], change: Callable[[str], str]) -> str:
    """With `change` made to what stands between the parts that are to stay."""
    return "".join(change(piece) if free else piece for piece, free in pieces(text, keep))


def like(word: str, model: str) -> str:
    """In the case of the model: WORD, Word or word."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def _misspelt(
    texts: Sequence[str], keep: Collection[str], number: int, seed: int, known: Misspellings
) -> Callable[[str], str]:
    """A fifth of the words that can be misspelt, and one at least; not those that are only written with a capital, as names."""
    free = [piece for text in texts for piece, may_change in pieces(text, keep) if may_change]
    words = {word for piece in free for word in WORD.findall(piece) if word.islower()}
    place = {word: digest("misspelt", seed, number, word) for word in words if known(word, seed)}
    chosen = {word for word in place if place[word] < MISSPELT_SHARE * 2**64} or {
        *sorted(place, key=lambda w: place[w])[:1]
    }
    slips = {}
    for word in chosen:
        options = known(word, seed)
        slips[word] = options[digest("slip", seed, number, word) % len(options)]
    return lambda piece: WORD.sub(lambda match: like(slips.get(match[0].lower(), match[0]), match[0]), piece)


def _spaced(number: int, seed: int) -> Callable[[], Callable[[str], str]]:
    """For each text by itself, so that what two texts share is spaced alike."""

    def fresh() -> Callable[[str], str]:
        draw = random.Random(f"spaces {seed} {number}")
        return lambda piece: SINGLE_SPACE.sub(lambda _: " " * draw.randint(1, MOST_SPACES), piece)

    return fresh


def _shortened(piece: str) -> str:
    return _TO_SHORT.sub(lambda match: like(SHORT_OF[match[0].lower()], match[0]), piece)


def _lengthened(piece: str) -> str:
    return _TO_LONG.sub(lambda match: like(LONG_OF[match[0].lower().replace("’", "'")], match[0]), piece)


def perturb(example: Example, kind: str, known: Misspellings, seed: int, *, alternatives: bool = False) -> Example:
    """The example with its question changed; itself where nothing is to change.

    `alternatives`: its texts are what is asked, and `prompt` what follows each: their common words change alike.
    """
    if kind == "order":
        return reordered(example, seed)
    if alternatives:
        words = [Counter(re.findall(r"\w+(?:['’]\w+)*", text)) for text in example.texts]
        keep: set[str] = {word for some in words for word in some if len({other[word] for other in words}) > 1}
        texts = list(example.texts)
    else:
        keep = {*example.texts}
        texts = [example.prompt[example.begins :], example.listed[example.listed_begins :]]
    if kind == "typos":
        slip = _misspelt(texts, keep, example.number, seed, known)
    changes: dict[str, Callable[[], Callable[[str], str]]] = {
        "typos": lambda: slip,
        "case": lambda: str.lower,
        "spaces": _spaced(example.number, seed),
        "contracted": lambda: _shortened,
        "expanded": lambda: _lengthened,
    }
    new = [changed(text, keep, changes[kind]()) for text in texts]
    if alternatives:
        return replace(example, texts=tuple(new))
    prompt, listed = example.prompt[: example.begins] + new[0], example.listed[: example.listed_begins] + new[1]
    return replace(example, prompt=prompt, listed=listed)


def reordered(example: Example, seed: int) -> Example:
    """With its options in another order, and the right one followed; itself where the prompt does not list them by letters,
    where two are the same, or where one speaks of the others ("all of the above", "both A and B").
    """
    texts, spans = example.texts, None
    if len(texts) < 2 or len(set(texts)) < len(texts) or any(map(OF_OTHERS.search, texts)):
        return example
    for mark in MARKS:
        spans = spans or _listed_spans(example, mark)
    if not spans:
        return example
    order = list(range(len(texts)))
    draw = random.Random(f"order {seed} {example.number}")
    while order == sorted(order):
        draw.shuffle(order)
    listed, place = "", 0
    for (start, stop), old in zip(spans, order, strict=True):
        listed += example.listed[place:start] + texts[old]
        place = stop
    listed += example.listed[place:]
    return replace(example, texts=tuple(texts[old] for old in order), answer=order.index(example.answer), listed=listed)


def _listed_spans(example: Example, mark: str) -> list[tuple[int, int]] | None:
    """Where each option stands behind its letter and the mark."""
    spans, end = [], len(example.listed)
    for letter, text in reversed([*zip(LETTERS, example.texts, strict=False)]):
        end = example.listed.rfind(letter + mark + text, example.listed_begins, end)
        if end < 0:
            return None
        spans.append((end + len(letter + mark), end + len(letter + mark + text)))
    return spans[::-1]

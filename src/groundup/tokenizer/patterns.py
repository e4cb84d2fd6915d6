"""Pre-tokenization patterns: the regular expressions that split text into pre-tokens, which merges never cross.

A pattern limits compatibility: a model runs in another tool only if that tool knows the pattern. Hugging Face reads the
expression from tokenizer.json and tiktoken is given it, so those two read every pattern here; gigatoken and llama.cpp
know patterns by name. llama.cpp's converter, however, identifies the pattern by a hash of the ids that the vocabulary gives a
fixed text, and refuses every vocabulary that it does not know, whatever its pattern: all vocabularies trained here. So
`serving/gguf_file.py` writes GGUF itself.
All patterns share the rules of GPT-2 and its successors: a word includes one character before it (its space), punctuation
includes one space before it and the line ends after it.

- `qwen2`: digits one by one, so a number is always cut the same way.
- `threes`: digits in groups of three from the left, as in GPT-4 and Llama 3: shorter, but 1234567 is 123|456|7.
- `threes-from-right`: groups of three from the right, 1|234|567, as commas are written; arithmetic is easier to
  learn (Singh and Strouse 2024, arXiv 2402.14903).
- `indentation`: a run of spaces and tabs is one piece, so four spaces are four and `return` after them is the same
  token as at the start of a line. With the others the last space of a run belongs to the word after it.
"""

import difflib
import re
from dataclasses import dataclass

from groundup.core.errors import UserError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_WORDS_WITHOUT_TAB = r"[^\r\n\t\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Pattern:
    name: str
    regex: str  # for `regex`, Oniguruma (tokenizers) and fancy-regex (tiktoken) alike
    compatibility: str

    @property
    def ascii_pattern(self) -> str:
        """The same pattern on ASCII text, for Python's `re` with `re.ASCII`, which takes a third of the time."""
        classes = re.sub(
            r"\[[^]]*\]", lambda match: match[0].replace(r"\p{L}", "a-zA-Z").replace(r"\p{N}", "0-9"), self.regex
        )
        return classes.replace(r"\p{L}", "[a-zA-Z]").replace(r"\p{N}", "[0-9]")


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern(
            "qwen2",
            rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}",
            "Hugging Face, tiktoken and gigatoken read it; llama.cpp has the pattern, but its converter refuses "
            "vocabularies that it does not know",
        ),
        Pattern(
            "threes",
            rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}",
            "up to 1,110 tokens are numbers. Hugging Face, tiktoken and gigatoken read it; llama.cpp has the pattern, but its "
            "converter refuses vocabularies that it does not know",
        ),
        Pattern(
            "threes-from-right",
            rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}(?=(?:\p{{N}}{{3}})*(?!\p{{N}}))|{_SYMBOLS}|{_SPACES}",
            "no GGUF and no gigatoken: only Hugging Face and tiktoken read it, in time that grows with the square of "
            "the length of a number",
        ),
        Pattern(
            "indentation",
            rf"{_CONTRACTIONS}|{_WORDS_WITHOUT_TAB}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]+|[ \t]+|\s+(?!\S)|\s+",
            "no GGUF and no gigatoken: only Hugging Face and tiktoken read it",
        ),
    )
}


def pattern(name: str) -> Pattern:
    """Raises UserError for an unknown name, with the nearest known one."""
    if name not in PATTERNS:
        close = difflib.get_close_matches(name, PATTERNS, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(PATTERNS)}"
        raise UserError(f"no pre-tokenization pattern {name!r}; {hint}")
    return PATTERNS[name]


def pattern_of(regex: str) -> Pattern | None:
    """The pattern that a tokenizer.json holds, by its regular expression."""
    return next((known for known in PATTERNS.values() if known.regex == regex), None)

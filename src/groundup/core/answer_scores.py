"""How close an answer is to the right one, as in SQuAD's official scorer (Rajpurkar et al. 2016).

An answer is compared as a bag of words, after case, punctuation, articles and runs of white space are removed: exact
match is whether two answers are then the same, F1 how many words they share.
"""

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and surplus white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: str) -> float:
    """1 if both are the same words."""
    return float(normalised(answer) == normalised(right))


def f1(answer: str, right: str) -> float:
    """Harmonic mean of the shares of common words among the answer's words and among the right one's; 0 without any."""
    given, expected = normalised(answer).split(), normalised(right).split()
    common = sum((Counter(given) & Counter(expected)).values())
    return 2 * common / (len(given) + len(expected)) if common else 0.0

"""10,000 strings of every kind come back exactly, and AutoTokenizer gives our ids whatever model the folder holds.

Strings, and for bytes kinds any bytes, are hypothesis's. WordPiece forgets case and spaces by design, so only its ids
are compared. Text that looks like a special token is text in both (`split_special_tokens`). A folder of `qwen2` is
shown and not counted: transformers 5 reads it with its own class whatever the tokenizer says, and groundup makes no
such model, it only reads them.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import arguments, conclude
from groundup.model.description import FAMILIES
from groundup.tokenizer import bpe, characters, wordpiece
from groundup.tokenizer.counts import count_pretokens
from groundup.tokenizer.load import AnyTokenizer
from groundup.tokenizer.patterns import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer

CLAIM, EXAMPLES, COMPARED = "texts of 10,000 that do not come back, or get other ids from AutoTokenizer", 10_000, 500
CORPUS = ["The cat and the hat. It's 3.14159!\n", "def cat(hat):\n        return 2\n", "🙂 漢字かな 한국어 é\u0301"]
MODEL_TYPES = [*FAMILIES, "bert", "groundup_lstm", "groundup_convolution", "groundup_patches"]


def tokenizers() -> Iterator[tuple[str, AnyTokenizer]]:
    for pattern in PATTERNS.values():
        yield f"bpe, {pattern.name}", Tokenizer.from_merges(bpe.train(count_pretokens(CORPUS * 9, pattern), 340), pattern)
    yield "characters", characters.Characters(characters.train(characters.count_characters(CORPUS), 300))
    yield "bytes", characters.Characters()
    yield "wordpiece", wordpiece.WordPiece(wordpiece.train(wordpiece.count_words(CORPUS * 9), 200))


def main() -> None:
    arguments(__doc__)
    try:
        import transformers
        from hypothesis import HealthCheck, given, seed, settings
        from hypothesis import strategies as st
    except ImportError as error:
        return conclude(CLAIM, None, "texts", 0, None, reason=f"{error.name} is not installed")
    transformers.logging.set_verbosity_error()
    usual = st.sampled_from(sorted({*"".join(CORPUS)}))
    # Up to Cyrillic: which of the newest characters are letters, regular expressions of two libraries say differently.
    old = st.characters(max_codepoint=0x52F, exclude_categories=["Cs"])
    strings = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), usual))

    def examples(strategy: st.SearchStrategy, count: int) -> list:
        strings = []

        @seed(0)
        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def collect(example: str | bytes) -> None:
            strings.append(example)

        collect()
        return strings

    texts, data = examples(strings, EXAMPLES), examples(st.binary(), EXAMPLES)
    old_texts = examples(st.text(st.one_of(old, usual)), COMPARED)
    wrong = 0
    for name, ours in tokenizers():
        lost, other = 0, dict.fromkeys(MODEL_TYPES, 0)
        if name != "wordpiece":
            lost += sum(ours.decode(ours.encode(text)) != text for text in texts)
        if isinstance(ours, characters.Characters):
            lost += sum(ours.decode_bytes(ours.encode_bytes(row)) != row for row in data)
        with tempfile.TemporaryDirectory() as folder:
            ours.save(Path(folder))
            for model_type in MODEL_TYPES:
                (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}))
                peer = transformers.AutoTokenizer.from_pretrained(folder)
                peer_ids = peer(old_texts, split_special_tokens=True, add_special_tokens=False)["input_ids"]
                other[model_type] = sum(ours.encode(text) != ids for text, ids in zip(old_texts, peer_ids, strict=True))
        print(f"{name:<24} {len(texts):,} texts: {lost} lost; other ids of {len(old_texts)} in a folder of "
              + (", ".join(f"{model_type}: {count}" for model_type, count in other.items() if count) or "any type: 0"))
        wrong += lost + sum(other.values()) - other["qwen2"]
    conclude(CLAIM, wrong, "texts", 0, wrong == 0, peer="AutoTokenizer", peer_figure=0)


if __name__ == "__main__":
    main()

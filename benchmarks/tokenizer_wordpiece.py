"""WordPiece ids are those of transformers' BERT tokenizer on every kind of text, for one vocabulary; and as quickly."""

import random
import statistics
import time
from pathlib import Path

from common import arguments, conclude
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

VOCABULARY = 30_522  # of bert-base-uncased
TRAINING_CHARACTERS = 10_000_000
SAMPLE_CHARACTERS = 400_000  # of each file


def texts_of(path: Path) -> list[str]:
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(path, columns=["text"]).column(0).to_pylist()
    random.Random(0).shuffle(texts)
    return texts


def first(texts: list[str], characters: int) -> list[str]:
    chosen, size = [], 0
    for text in texts:
        if size >= characters:
            break
        chosen.append(text[:20_000])
        size += len(chosen[-1])
    return chosen


def main() -> None:
    claim = "WordPiece ids identical to transformers' BERT tokenizer"
    paths = sorted((arguments(__doc__).data / "text").glob("*.parquet"))
    try:
        import transformers
    except ImportError:
        return conclude(claim, None, "differing texts", 0, None, reason="transformers is not installed")
    if not paths:
        return conclude(claim, None, "differing texts", 0, None, reason="no text/*.parquet; give --data DIR")
    transformers.logging.set_verbosity_error()
    samples = {path.stem: texts_of(path) for path in paths}
    training = first(samples.get("openstax") or next(iter(samples.values())), TRAINING_CHARACTERS)
    start = time.perf_counter()
    counts = count_words(training)
    counted = time.perf_counter()
    pieces = train(counts, VOCABULARY)
    print(f"trained {len(pieces):,} pieces on {sum(map(len, training)) / 1e6:.1f} million characters: counting "
          f"{counted - start:.1f} s, joining {time.perf_counter() - counted:.1f} s")  # fmt: skip
    ours = WordPiece(pieces)
    peer = transformers.BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    differing, ratios = 0, []
    for name, texts in samples.items():
        chosen = first(texts, SAMPLE_CHARACTERS)
        times = {"ours": [], "peer": []}
        for _ in range(3):
            start = time.perf_counter()
            encoded = [ours.encode(text) for text in chosen]
            middle = time.perf_counter()
            expected = [peer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in chosen]
            times["ours"].append(middle - start)
            times["peer"].append(time.perf_counter() - middle)
        wrong = sum(a != b for a, b in zip(encoded, expected, strict=True))
        differing += wrong
        size = sum(map(len, chosen))
        speed = {who: size / statistics.median(seconds) / 1e6 for who, seconds in times.items()}
        ratios.append(speed["ours"] / speed["peer"])
        unknown = sum(ids.count(ours.unknown) for ids in encoded) / sum(map(len, encoded))
        print(f"{name:<16} {len(chosen):>4} texts, {wrong} differ; {size / sum(map(len, encoded)):.2f} characters a token, "
              f"{unknown:.2%} [UNK]; ours {speed['ours']:.2f}, transformers {speed['peer']:.2f} M characters/s")  # fmt: skip
    print(f"encoding speed, one thread, median over the files: {statistics.median(ratios):.2f} times transformers'")
    conclude(claim, differing, "differing texts", 0, differing == 0, peer="BertTokenizer", peer_figure=0)


if __name__ == "__main__":
    main()

"""Post-training on real data: SFT makes held-out answers likelier, and they end; a reward model beats "the longer one".

A small model, pre-trained for a few minutes on web pages, reviews and texts of many genres, is fine-tuned on Alpaca, role
play and OASST; a tenth of the prompts is held out. Reward models are trained from it on the human comparisons of HH-RLHF
(harmless), by two folds of the prompts, so that each pair is judged by a model that has not seen it.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

import groundup
from common import ROOT, conclude, machine
from groundup.core.statistics import difference, proportion
from groundup.data.contracts import read_conversations, read_preferences, split
from groundup.generation.engine import Sampling
from groundup.model.base import LanguageModel
from groundup.model.likelihood import score
from groundup.posttraining.batches import Row, question_of
from groundup.posttraining.reference_answers import answer
from groundup.posttraining.reward import assess
from groundup.posttraining.tokenize_rows import conversation, too_long, usable_rows
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = ("c4_demo", "movie_reviews", "gum")
TALKS = ("alpaca_demo_999.json.gz", "gpteacher_roleplay.json.gz", "oasst_100_trees.jsonl.gz")
PAIRS = "hh_harmless_test.jsonl.gz"
CONTEXT, VOCABULARY, ASKED, MOST = 512, 4096, 100, 256


def read(tokenizer: Tokenizer, rows: Sequence[dict]) -> list[Row]:
    return usable_rows(rows, partial(conversation, tokenizer), partial(too_long, CONTEXT), Counter())


def nats(model: LanguageModel, rows: list[Row]) -> list[float]:
    """Per token of the answers of each conversation."""
    scored = score(model, [ids for ids, _ in rows])
    return [
        -float(logprobs[np.array(spoken[1:], dtype=bool)].mean()) for logprobs, (_, spoken) in zip(scored, rows, strict=True)
    ]


def ended(model: LanguageModel, tokenizer: Tokenizer, rows: Sequence[dict]) -> list[float]:
    """Of the answers to held-out prompts, sampled as they come: 1 for those that end within MOST tokens, 0 for the others."""
    answers = answer(model, tokenizer, [question_of(row) for row in rows], Sampling(MOST, temperature=1.0), 0)
    return [float(end) for _, end in answers]


class Judged(NamedTuple):
    right: dict[str, float]  # share of all pairs, with its interval
    ahead_of_longer: dict[str, float]
    ahead_of_shorter: dict[str, float]  # of two rules about length one is right more often than not
    longer: float  # share of the pairs in which it is preferred
    correlation: float  # of reward and length


def reward_models(model: groundup.Model, path: Path, folder: Path, max_pairs: int) -> Judged:
    pairs = read_preferences([path]).rows[:max_pairs]
    folds = split(pairs, 0.5)
    right, ahead, longer, correlations = 0, [], [], []
    for number in (0, 1):
        trained, unseen = ([pair.row for pair in folds[side]] for side in (number, 1 - number))
        rewarded = groundup.reward(model, trained, folder / f"reward{number}", epochs=2, learning_rate=3e-4)
        summary, scored = assess(rewarded.network, rewarded.tokenizer, unseen)
        sides = [[row for row in scored if row["side"] == side] for side in ("chosen", "rejected")]
        correct = [float(chosen["reward"] > rejected["reward"]) for chosen, rejected in zip(*sides, strict=True)]
        length = [
            0.5 if chosen["tokens"] == rejected["tokens"] else float(chosen["tokens"] > rejected["tokens"])
            for chosen, rejected in zip(*sides, strict=True)
        ]
        right += int(sum(correct))
        ahead, longer = ahead + correct, longer + length
        correlations.append(summary["length_correlation"])
    return Judged(
        proportion(right, len(ahead)), difference(ahead, longer), difference(ahead, [1 - value for value in longer]),
        float(np.mean(longer)), float(np.mean(correlations)),
    )  # fmt: skip


def interval(statistic: dict[str, float], name: str = "difference") -> str:
    return f"{statistic[name]:.1%} ({statistic['low']:.1%} to {statistic['high']:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of pre-training")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--rows", type=int, default=10**6, help="conversations and pairs at most, to try the script")
    options, _ = parser.parse_known_args()
    claim = "reward model on HH-RLHF (harmless), right choices ahead of always the longer answer"
    if not (options.data / "preferences" / PAIRS).is_file():
        conclude(claim, None, "share", 0.0, None, reason=f"no {options.data / 'preferences' / PAIRS}")
        return
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        texts = [
            text for name in TEXTS
            for text in pq.read_table(options.data / "text" / f"{name}.parquet", columns=["text"])["text"].to_pylist()
        ]  # fmt: skip
        tokenizer = groundup.train_tokenizer(texts, VOCABULARY, folder / "tokenizer")
        base = groundup.pretrain(
            texts, tokenizer, folder / "base", depth=options.depth, context_length=CONTEXT, tokens=options.tokens,
            batch_tokens=8192, micro_batch_tokens=4096,
        )  # fmt: skip
        print(f"{machine()}; pre-trained on {options.tokens:,} tokens, {time.process_time() - begun:.0f} s of processor time")
        for name in TALKS:
            conversations = read_conversations([options.data / "sft" / name])
            print(f"  {name}: {conversations}")
        train, held_out = split(read_conversations([options.data / "sft" / name for name in TALKS]).rows[: options.rows])
        trained, unseen = ([{"messages": conversation.rows} for conversation in side] for side in (train, held_out))
        model = groundup.sft(
            base, trained, folder / "sft", epochs=1, max_answer_tokens=CONTEXT, packing=True, batch_examples=16,
            learning_rate=1e-3,
        )
        rows = read(model.tokenizer, unseen)
        before, after = nats(base.network, rows), nats(model.network, rows)
        gained = difference(before, after)
        print(
            f"SFT: {len(rows)} held-out conversations, {np.mean(before):.3f} -> {np.mean(after):.3f} nats a token of their "
            f"answers; gained {gained['difference']:.3f} ({gained['low']:.3f} to {gained['high']:.3f})"
        )
        ends = [ended(opened.network, model.tokenizer, unseen[:ASKED]) for opened in (base, model)]
        of_people = float(np.mean([sum(spoken) <= MOST for _, spoken in rows]))
        more = difference(ends[1], ends[0])
        print(
            f"answers that end within {MOST} tokens: {np.mean(ends[0]):.0%} -> {np.mean(ends[1]):.0%} of {ASKED}, "
            f"{interval(more)} more; people's {of_people:.0%}"
        )
        judged = reward_models(model, options.data / "preferences" / PAIRS, folder, options.rows)
    print(
        f"reward model: right on {interval(judged.right, 'accuracy')} of {judged.right['n']:,} pairs; the longer answer is "
        f"preferred in {judged.longer:.1%}: ahead of it by {interval(judged.ahead_of_longer)}, of the shorter one by "
        f"{interval(judged.ahead_of_shorter)}; reward against length {judged.correlation:.2f}; "
        f"{time.process_time() - begun:.0f} s of processor time"
    )
    ahead = judged.ahead_of_longer
    holds = gained["low"] > 0 and more["low"] > 0 and ahead["low"] > 0
    conclude(claim, ahead["low"], "share", 0.0, holds, peer="SFT: held-out nats a token gained", peer_figure=gained["difference"])


if __name__ == "__main__":
    main()

"""What would fail in silence, looked for in the rows before a model is trained on them: rows in, findings out.

Each is a thread of complaints somewhere: models that never stop, since their end was padding, and padding is masked; masks
that are all zero; a beginning that stands twice; rows cut until no answer was left; pairs of the same answer.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from groundup.core.errors import UserError
from groundup.posttraining.batches import Row
from groundup.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

CUT = "whole: cut, no answer or an answer without its end would be left"
PADDING = "learned here, where padding is known by its place; trainers that know it by its id never train the end"


@dataclass(frozen=True)
class Finding:
    """`count` of `of` rows (or pairs) have the fault `name`; `so` is what comes of it, and what to do."""

    name: str
    count: int
    of: int
    so: str

    def __str__(self) -> str:
        return f"{self.count:,} of {self.of:,}: {self.name}; {self.so}"


def tell(stage: str, findings: Sequence[Finding], strict: bool) -> None:
    """Log what was found. Raises UserError, with all of it, where `strict`."""
    for one in findings:
        logger.warning(f"{stage}: {one}")
    if strict and findings:
        names = ", ".join(f"{one.name} ({one.count:,} of {one.of:,})" for one in findings)
        raise UserError(f"{stage}: refused, as strict says: {names}; mend the rows, or leave strict out")


def of_conversations(rows: Sequence[Row], tokenizer: Tokenizer, left_out: Mapping[str, int]) -> list[Finding]:
    """Of the rows that are to be trained on, and of those that were left out, by reason."""
    return [*_left_out(len(rows), left_out), *_of_rows(rows, tokenizer), *_twice([tuple(ids) for ids, _ in rows])]


def of_pairs(pairs: Sequence[tuple[Row, Row]], tokenizer: Tokenizer, left_out: Mapping[str, int]) -> list[Finding]:
    """As `of_conversations`, of (chosen, rejected)."""
    keys = [(tuple(chosen[0]), tuple(rejected[0])) for chosen, rejected in pairs]
    found = [*_left_out(len(pairs), left_out), *_of_rows([row for pair in pairs for row in pair], tokenizer), *_twice(keys)]
    known = set(keys)
    if against := sum(key[::-1] in known for key in keys):
        found.append(Finding("pairs of which the opposite is there too", against, len(pairs), "together they teach nothing"))
    return found


def of_prompts(prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, left_out: Mapping[str, int]) -> list[Finding]:
    """Of prompts (token ids) that a policy is to answer, and of those that were left out."""
    end, stated, total = tokenizer.message_end, _stated_end(tokenizer), len(prompts)
    found = list(_left_out(total, left_out, "they are not answered"))
    if tokenizer.pad == end:
        found.append(Finding(f"padding is the end of an answer, {_name(tokenizer, end)}", total, total, PADDING))
    if stated is not None and stated != end:
        found.append(_other_end(tokenizer, {end}, stated, total, total))
    return [*found, *_begun_twice(prompts, tokenizer), *_twice([tuple(ids) for ids in prompts])]


def of_first_answers(answers: Sequence[Sequence[int]], ended: Sequence[bool], rewards: Sequence[float]) -> list[Finding]:
    """Of what a policy answers before it learns: token ids, whether each ended by itself, and its reward."""
    total, found = len(answers), []
    if not any(ended):
        found.append(
            Finding("answers that do not end", total, total, "the end is never sampled: fine-tune first, or allow longer answers")
        )
    if all(end and len(answer) == 1 for answer, end in zip(answers, ended, strict=True)):
        found.append(Finding("answers that are nothing but their end", total, total, "there is nothing to reward"))
    if len(set(rewards)) == 1:
        found.append(Finding(f"answers with one reward, {rewards[0]:g}", total, total, "nothing can be learned of it"))
    return found


def no_answer(*rows: Row) -> str | None:
    """The reason to leave out a row in which nothing is learned."""
    return None if all(any(spoken[1:]) for _, spoken in rows) else "without a token to learn: the mask is empty"


def same(chosen: Row, rejected: Row) -> str | None:
    """The reason to leave out a pair of one answer: no loss could tell its sides apart."""
    return "with chosen equal to rejected, as tokens" if chosen[0] == rejected[0] else None


def answers_of(row: Row) -> Iterator[list[int]]:
    """The tokens of each answer that is learned, its end included."""
    answer: list[int] = []
    for token, says in zip((*row[0], 0), (*row[1], 0), strict=True):
        if says:
            answer.append(token)
        elif answer:
            yield answer
            answer = []


def _of_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[Finding]:
    possible = {tokenizer.message_end, *tokenizer.ends}
    learned = [[possible.intersection(answer) for answer in answers_of(row)] for row in rows]  # the ends of each answer
    ends = {token for answers in learned for found in answers for token in found}
    if count := sum(not all(answers) for answers in learned):
        yield Finding(
            "answers whose end is not learned", count, len(rows), "the model would not learn to stop; see `groundup data show`"
        )
    if tokenizer.pad in ends:
        yield Finding(
            f"padding is the end of an answer, {_name(tokenizer, tokenizer.pad)}", len(rows), len(rows), PADDING
        )
    yield from _begun_twice([ids for ids, _ in rows], tokenizer)
    stated = _stated_end(tokenizer)
    if ends and stated is not None and (count := sum(stated not in answer for answers in learned for answer in answers)):
        yield _other_end(tokenizer, ends, stated, count, sum(map(len, learned)))


def _other_end(tokenizer: Tokenizer, ends: Collection[int], stated: int, count: int, of: int) -> Finding:
    others = ", ".join(sorted(_name(tokenizer, token) for token in ends))
    name = f"answers end with {others}, not with tokenizer_config.json's eos_token {_name(tokenizer, stated)}"
    return Finding(name, count, of, "tools that stop at that alone never stop; change eos_token")


def _begun_twice(rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> Iterator[Finding]:
    special = set(tokenizer.special_tokens.values())
    if count := sum(len(ids) > 1 and ids[0] == ids[1] and ids[0] in special for ids in rows):
        yield Finding("the token that begins a text stands twice", count, len(rows), "the chat template and its tokenizer add it")


def _left_out(kept: int, left_out: Mapping[str, int], so: str = CUT) -> Iterator[Finding]:
    total = kept + sum(left_out.values())
    for reason, count in Counter(left_out).most_common():
        yield Finding(f"left out, {reason[:80]}", count, total, so)


def _twice(keys: Collection[object]) -> Iterator[Finding]:
    if count := len(keys) - len(set(keys)):
        yield Finding("the same as one before", count, len(keys), "they count as often as they stand there")


def _stated_end(tokenizer: Tokenizer) -> int | None:
    """`eos_token` of somebody's folder, which is written again as it came; ours states what its answers end with."""
    try:
        stated = json.loads(tokenizer.foreign_files.get("tokenizer_config.json", "{}")).get("eos_token")
    except (ValueError, AttributeError):
        return None
    text = stated.get("content") if isinstance(stated, dict) else stated
    return tokenizer.special_tokens.get(text) if isinstance(text, str) else None


def _name(tokenizer: Tokenizer, token: int) -> str:
    return next((name for name, number in tokenizer.special_tokens.items() if number == token), str(token))[:40]

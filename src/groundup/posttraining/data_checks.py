"""Checks of the rows before a model is trained on them, for what would fail in silence: rows in, findings out.

Users of trainers have complained of each: models that never stop, since their end was padding, and padding is masked; masks
that are all zero; a beginning that stands twice; rows cut so far that they have no answer; pairs of the same answer.
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

CUT = "whole: cut, they would have no answer or an answer without its end"
PADDING = "learned here, where padding is masked by position; trainers that mask it by its id never train the end"


@dataclass(frozen=True)
class Finding:
    """`count` of `total` rows (or pairs) have the fault `name`. `consequence`: what it causes, and what to do."""

    name: str
    count: int
    total: int
    consequence: str

    def __str__(self) -> str:
        return f"{self.count:,} of {self.total:,}: {self.name}; {self.consequence}"


def report_findings(stage: str, findings: Sequence[Finding], strict: bool) -> None:
    """Log the findings. Raises UserError, with all of them, where `strict`."""
    for finding in findings:
        logger.warning(f"{stage}: {finding}")
    if strict and findings:
        names = ", ".join(f"{finding.name} ({finding.count:,} of {finding.total:,})" for finding in findings)
        raise UserError(f"{stage}: refused, as strict says: {names}; mend the rows, or leave strict out")


def of_conversations(rows: Sequence[Row], tokenizer: Tokenizer, left_out: Mapping[str, int]) -> list[Finding]:
    """Findings on the rows to train on, and on those that were left out, by reason."""
    return [*_left_out(len(rows), left_out), *_of_rows(rows, tokenizer), *_duplicates([tuple(ids) for ids, _ in rows])]


def of_pairs(pairs: Sequence[tuple[Row, Row]], tokenizer: Tokenizer, left_out: Mapping[str, int]) -> list[Finding]:
    """As `of_conversations`, of (chosen, rejected)."""
    keys = [(tuple(chosen[0]), tuple(rejected[0])) for chosen, rejected in pairs]
    rows = [row for pair in pairs for row in pair]
    findings = [*_left_out(len(pairs), left_out), *_of_rows(rows, tokenizer), *_duplicates(keys)]
    known = set(keys)
    if opposite := sum(key[::-1] in known for key in keys):
        findings.append(Finding("pairs of which the opposite is there too", opposite, len(pairs), "together they teach nothing"))
    return findings


def of_prompts(prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, left_out: Mapping[str, int]) -> list[Finding]:
    """Findings on the prompts (token ids) that a policy is to answer, and on those that were left out."""
    end, stated, total = tokenizer.message_end, _stated_end(tokenizer), len(prompts)
    findings = list(_left_out(total, left_out, "they are not answered"))
    if tokenizer.pad == end:
        findings.append(Finding(f"padding is the end of an answer, {_token_name(tokenizer, end)}", total, total, PADDING))
    if stated is not None and stated != end:
        findings.append(_end_mismatch(tokenizer, {end}, stated, total, total))
    return [*findings, *_doubled_begin(prompts, tokenizer), *_duplicates([tuple(ids) for ids in prompts])]


def of_first_answers(answers: Sequence[Sequence[int]], ended: Sequence[bool], rewards: Sequence[float]) -> list[Finding]:
    """Findings on a policy's answers before it is trained: token ids, whether each ended by itself, and its reward."""
    total, findings = len(answers), []
    if not any(ended):
        findings.append(
            Finding("answers that do not end", total, total, "the end is never sampled: fine-tune first, or allow longer answers")
        )
    if all(end and len(answer) == 1 for answer, end in zip(answers, ended, strict=True)):
        findings.append(Finding("answers that are nothing but their end", total, total, "there is nothing to reward"))
    if len(set(rewards)) == 1:
        findings.append(Finding(f"answers with one reward, {rewards[0]:g}", total, total, "nothing can be learned of it"))
    return findings


def no_answer(*rows: Row) -> str | None:
    """The reason to leave out a row in which nothing is learned."""
    return None if all(any(spoken[1:]) for _, spoken in rows) else "without a token to learn: the mask is empty"


def same_answer(chosen: Row, rejected: Row) -> str | None:
    """The reason to leave out a pair of one answer: no loss could tell its sides apart."""
    return "with chosen equal to rejected, as tokens" if chosen[0] == rejected[0] else None


def answers_of(row: Row) -> Iterator[list[int]]:
    """The tokens of each answer that is learned, its end included."""
    answer: list[int] = []
    for token, is_spoken in zip((*row[0], 0), (*row[1], 0), strict=True):
        if is_spoken:
            answer.append(token)
        elif answer:
            yield answer
            answer = []


def _of_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[Finding]:
    possible = {tokenizer.message_end, *tokenizer.ends}
    answer_ends = [[possible.intersection(answer) for answer in answers_of(row)] for row in rows]  # the ends of each answer
    ends = {token for answers in answer_ends for tokens in answers for token in tokens}
    if count := sum(not all(answers) for answers in answer_ends):
        yield Finding(
            "answers whose end is not learned", count, len(rows), "the model would not learn to stop; see `groundup data show`"
        )
    if tokenizer.pad in ends:
        yield Finding(
            f"padding is the end of an answer, {_token_name(tokenizer, tokenizer.pad)}", len(rows), len(rows), PADDING
        )
    yield from _doubled_begin([ids for ids, _ in rows], tokenizer)
    stated = _stated_end(tokenizer)
    if ends and stated is not None and (count := sum(stated not in answer for answers in answer_ends for answer in answers)):
        yield _end_mismatch(tokenizer, ends, stated, count, sum(map(len, answer_ends)))


def _end_mismatch(tokenizer: Tokenizer, ends: Collection[int], stated: int, count: int, total: int) -> Finding:
    others = ", ".join(sorted(_token_name(tokenizer, token) for token in ends))
    name = f"answers end with {others}, not with tokenizer_config.json's eos_token {_token_name(tokenizer, stated)}"
    return Finding(name, count, total, "tools that stop at that alone never stop; change eos_token")


def _doubled_begin(rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> Iterator[Finding]:
    special = set(tokenizer.special_tokens.values())
    if count := sum(len(ids) > 1 and ids[0] == ids[1] and ids[0] in special for ids in rows):
        yield Finding("the token that begins a text stands twice", count, len(rows), "the chat template and its tokenizer add it")


def _left_out(usable: int, left_out: Mapping[str, int], consequence: str = CUT) -> Iterator[Finding]:
    total = usable + sum(left_out.values())
    for reason, count in Counter(left_out).most_common():
        yield Finding(f"left out, {reason[:80]}", count, total, consequence)


def _duplicates(keys: Collection[object]) -> Iterator[Finding]:
    if count := len(keys) - len(set(keys)):
        yield Finding("the same as one before", count, len(keys), "they count as often as they stand there")


def _stated_end(tokenizer: Tokenizer) -> int | None:
    """`eos_token` of a foreign folder, which is written out unchanged; our own is always the end of its answers."""
    try:
        stated = json.loads(tokenizer.foreign_files.get("tokenizer_config.json", "{}")).get("eos_token")
    except (ValueError, AttributeError):
        return None
    text = stated.get("content") if isinstance(stated, dict) else stated
    return tokenizer.special_tokens.get(text) if isinstance(text, str) else None


def _token_name(tokenizer: Tokenizer, token: int) -> str:
    return next((name for name, number in tokenizer.special_tokens.items() if number == token), str(token))[:40]

"""Which tokens of a user's rows are trained, as text: in colour on a terminal, else as `{+what is trained+}`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.core.text import printable
from groundup.data.contracts import no_rows_message, read
from groundup.data.conversations import Conversation, conversation_of
from groundup.data.preferences import Preference, preference_format_of, preference_of
from groundup.data.readers import Refused
from groundup.posttraining.batches import Row
from groundup.posttraining.tokenize_rows import conversation, pair, usable_rows
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import StreamDecoder, Tokenizer

# Trained tokens alternate between green and a lighter green, which shows where each ends; the others are dim.
TRAINED, PLAIN, END = ("\x1b[30;42m", "\x1b[30;102m"), "\x1b[2m", "\x1b[0m"


Shown = list[tuple[str, list[tuple[str, bool]]]]  # of each row a head, and its text by tokens with whether each is trained


def show(folder: Path, files: Sequence[Path], count: int) -> tuple[Shown, dict[str, Any]]:
    """The first `count` rows of the files with what is trained of them, and {"rows", "tokens", "trained", "left_out"}.

    `folder`: of the model, whose tokenizer and chat template are used. Raises UserError where a file has no row to show.
    """
    tokenizer, left_out = of_model(folder), Counter[str]()
    shown: Shown = []
    tokens = trained = rows = 0
    for file in files:
        refused = Refused()
        examples = list(islice(read(expanded(file), _either, refused, Counter()), count))
        if not examples:
            raise UserError(f"{file}: {no_rows_message('conversations or preferences', file, refused)}")
        left_out.update(refused)
        given_rows = [example.row for example in examples]
        for sides in usable_rows(given_rows, lambda row: _sides(tokenizer, row), lambda sides: None, left_out):
            rows += 1
            for name, row in sides.items():
                tokens, trained = tokens + len(row[0]), trained + sum(row[1])
                head = f"--- row {rows}{name}: {sum(row[1]):,} of {len(row[0]):,} tokens are trained"
                shown.append((head, [*_texts(tokenizer, row)]))
    return shown, {"rows": rows, "tokens": tokens, "trained": trained, "left_out": dict(left_out)}


def marked_rows(shown: Shown, colour: bool) -> str:
    """For a terminal: trained tokens in colour, or as {+text+}. Nothing in the text can command it."""
    return "\n".join(f"{head}\n{_marked(texts, colour)}" for head, texts in shown)


def _marked(texts: Sequence[tuple[str, bool]], colour: bool) -> str:
    parts, number = [], 0
    for text, trained in texts:
        if colour:
            lines = text.split("\n")  # a colour that goes over a line end would paint the rest of the line
            parts.append("\n".join(f"{TRAINED[number % 2] if trained else PLAIN}{line}{END}" if line else "" for line in lines))
            number += 1
        elif trained != bool(number):  # where a run of trained tokens begins or ends
            parts.append(f"{'{+' if trained else '+}'}{text}")
            number = int(trained)
        else:
            parts.append(text)
    return "".join(parts) + ("+}" if number and not colour else "")


def _texts(tokenizer: Tokenizer, row: Row) -> Iterator[tuple[str, bool]]:
    """The text of each token, and whether it is trained; a character of several tokens is with the last of them."""
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    decoder = StreamDecoder(tokenizer)
    for token, trained in zip(*row, strict=True):
        text = names[token] if token in names else decoder.push(token)
        yield printable(text), bool(trained)


def _either(row: Mapping[str, Any]) -> Conversation | Preference:
    return preference_of(row) if preference_format_of(row) else conversation_of(row)


def _sides(tokenizer: Tokenizer, row: Mapping[str, Any]) -> dict[str, Row]:
    if preference_format_of(row):
        chosen, rejected, _ = pair(tokenizer, row)
        return {", chosen": chosen, ", rejected": rejected}
    return {"": conversation(tokenizer, row)}

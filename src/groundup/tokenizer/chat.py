"""The conversation format: ChatML (`<|im_start|>role`, a line end, the content, `<|im_end|>`), as text and as ids.

`CHAT_TEMPLATE` is for other tools; `render` gives the same ids for ordinary text, and is safe: it puts special tokens
in by id and encodes content as text, so nobody can end a message by writing `<|im_end|>` in it.
Content is stripped of white space at both ends. So it never merges with the line end before it, and the ids of a
conversation always begin with those of its first messages, and of the prompt that asked for its last answer.
"""

from typing import TYPE_CHECKING

from groundup.errors import UserError

if TYPE_CHECKING:
    from groundup.tokenizer.tokenizer import Tokenizer

# {% generation %} marks what the model is trained to write: the answer and the token that ends it.
CHAT_TEMPLATE = r"""{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'] | trim + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|im_end|>' -}}
{%- endif -%}
{{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


def render(
    tokenizer: "Tokenizer", messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and a mask of the same length: 1 where the assistant writes (answers and their ends).

    Raises UserError unless it is one optional system message, then user and assistant in turn, and, for a generation
    prompt, the user last.
    """
    _check(messages, add_generation_prompt)
    line_end = tokenizer.encode("\n")
    ids: list[int] = []
    mask: list[int] = []
    for message in messages:
        header = [tokenizer.message_start, *tokenizer.encode(message["role"] + "\n")]
        body = [*tokenizer.encode(message["content"].strip()), tokenizer.message_end]
        ids += header + body + line_end
        mask += [0] * len(header) + [int(message["role"] == "assistant")] * len(body) + [0] * len(line_end)
    if add_generation_prompt:
        header = [tokenizer.message_start, *tokenizer.encode("assistant\n")]
        ids += header
        mask += [0] * len(header)
    return ids, mask


def _check(messages: list[dict[str, str]], add_generation_prompt: bool) -> None:
    expected = ("system", "user")
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in expected:
            raise UserError(f"message {number} of {len(messages)}: role {role!r}, expected {' or '.join(expected)}")
        if not isinstance(content, str):
            raise UserError(f"message {number} of {len(messages)}: content must be text, not {type(content).__name__}")
        expected = ("assistant",) if role == "user" else ("user",)
    if not messages or messages[-1]["role"] == "system":
        raise UserError("a conversation needs at least one message of the user")
    if add_generation_prompt and messages[-1]["role"] != "user":
        raise UserError("the last message is the assistant's: there is nothing to answer; end with one of the user")

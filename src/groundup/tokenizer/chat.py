"""The conversation format: ChatML (`<|im_start|>role`, a line end, the content, `<|im_end|>`), as text and as ids.

`CHAT_TEMPLATE` is for other tools; `render` gives the same ids for ordinary text, and is safe: it inserts special tokens
by id and encodes content as text, so nobody can end a message by writing `<|im_end|>` in it.
Content is stripped of white space at both ends. So it never merges with the line end before it, and the ids of a
conversation always begin with those of its first messages, and of the prompt for its last answer.

The line end is before every message but the first, not after each as in Qwen's template. So a finished
conversation ends with `<|im_end|>`, the last token that is trained: transformers and TRL read a reward at the last
token, and count every token after the prompt as part of an answer.
A conversation begins with the end-of-text token, as every document does in training (Qwen's has none). The template
writes it, as Llama's and Gemma's do, so that all encode the same: transformers, TRL and vLLM add nothing to a rendered
conversation, and lm-eval, which would, first checks for it. Encode the rendered text with `add_special_tokens=False`.

A foreign folder keeps its own template, and `render` uses that one: see `template`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from groundup.core.errors import UserError
from groundup.data.messages import ROLES, UNSUPPORTED_PARTS, checked
from groundup.tokenizer.bpe import NO_TOKEN

if TYPE_CHECKING:
    from groundup.tokenizer.tokenizer import Tokenizer

# {% generation %} marks what the model is trained to write: the answer and the token that ends it.
CHAT_TEMPLATE = r"""{%- if tools -%}
{{- raise_exception('tools: this chat format has no place for them') -}}
{%- endif -%}
{{- '<|endoftext|>' -}}
{%- set chat = namespace(text='') -%}
{%- for message in messages -%}
{%- set place = 'message ' ~ loop.index ~ ': ' -%}
{%- if message['role'] not in ROLES -%}
{{- raise_exception(place ~ 'role must be system, user or assistant') -}}
{%- endif -%}
{%- for key in UNSUPPORTED_PARTS -%}
{%- if message[key] -%}
{{- raise_exception(place ~ key ~ ': this chat format has no place for it') -}}
{%- endif -%}
{%- endfor -%}
{%- if message['content'] is string -%}
{%- set chat.text = message['content'] -%}
{%- elif message['content'] is defined and message['content'] is sequence and message['content'] is not mapping -%}
{%- set chat.text = '' -%}
{%- for part in message['content'] -%}
{%- if part is not mapping or part['type'] != 'text' or part['text'] is not string -%}
{{- raise_exception(place ~ 'a part of its content is not text') -}}
{%- endif -%}
{%- set chat.text = chat.text ~ part['text'] -%}
{%- endfor -%}
{%- else -%}
{{- raise_exception(place ~ 'content must be text') -}}
{%- endif -%}
{%- if not loop.first -%}
{{- '\n' -}}
{%- endif -%}
{{- '<|im_start|>' ~ message['role'] ~ '\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- (chat.text | trim) ~ '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- (chat.text | trim) ~ '<|im_end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if messages -%}
{{- '\n' -}}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".replace("UNSUPPORTED_PARTS", repr(list(UNSUPPORTED_PARTS))).replace("ROLES", repr(list(ROLES)))


def render(
    tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and a mask of the same length: 1 where the assistant writes (answers and their ends).

    By the template of the tokenizer's folder, or ours where it has none.
    Raises UserError unless it is one optional system message, then user and assistant in turn, each with text as
    content (see `text_of`), and, for a generation prompt, the user last; and where the folder's own template fails.
    """
    texts = checked(messages, add_generation_prompt)
    if tokenizer.template is not None:
        return tokenizer.template.render(tokenizer.encode_after, messages, texts, add_generation_prompt)
    if tokenizer.message_end == NO_TOKEN:
        raise UserError(
            "the model's folder has no chat template, and its tokenizer lacks the tokens of ours; put a chat_template.jinja there"
        )
    line_end = tokenizer.encode("\n")
    ids, mask = [tokenizer.end_of_text], [0]
    for number, (message, text) in enumerate(zip(messages, texts, strict=True)):
        header = [*(line_end if number else ()), tokenizer.message_start, *tokenizer.encode(message["role"] + "\n")]
        body = [*tokenizer.encode(text.strip()), tokenizer.message_end]
        ids += header + body
        mask += [0] * len(header) + [int(message["role"] == "assistant")] * len(body)
    if add_generation_prompt:
        header = [*line_end, tokenizer.message_start, *tokenizer.encode("assistant\n")]
        ids += header
        mask += [0] * len(header)
    return ids, mask


def answer_ends(tokenizer: "Tokenizer", stated: Sequence[int] = ()) -> list[int]:
    """Ids that end an answer: the end of a message, those that the tokenizer's folder names, and `stated`, those of a model."""
    return sorted({tokenizer.message_end, *tokenizer.ends, *stated} - {NO_TOKEN})


def after_answer(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Ids that the template writes after the end of the last answer: Qwen's a line end, ours none."""
    ids, mask = render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    return tuple(ids[len(mask) - mask[::-1].index(1) :])

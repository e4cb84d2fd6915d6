"""What is read of a body, however large it is, without a server."""

import json

import pytest
from pydantic import ValidationError

from groundup.serving.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    RequestError,
    TokenizeRequest,
    read,
)

pytest.importorskip("sqlalchemy", reason="needs the `label` extra")
from groundup.labelling.label_server import JudgementBody, JudgementsRequest, NextRequest

KINDS = [ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, NextRequest, JudgementsRequest, JudgementBody]
MANY = 3000
LARGE = {
    "nothing": [None] * MANY, "numbers": [1.5] * MANY, "texts": ["a"] * MANY, "of each": ["a", 1, None, []] * MANY,
    "lists": [[None]] * MANY, "in a list": [[None] * MANY], "ids and nothing": [1, *[None] * MANY],
    "object": {str(number): "a" for number in range(MANY)}, "objects": [{"a": 1}] * MANY,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_large_body_few_errors_are_collected(kind):
    """Each is an object of a kilobyte: 8 MB of `null,` had made the server's memory run out."""
    for value in LARGE.values():
        contents = [value, {f"field {number}": value for number in range(MANY)}, *({name: value} for name in kind.model_fields)]
        for content in contents:
            try:
                kind.model_validate(content)
            except ValidationError as error:
                assert error.error_count() <= 2 * len(kind.model_fields), (kind, str(content)[:60])


def test_every_kind_of_body_is_tried():
    of_requests = {one for one in Body.__subclasses__() if one.__name__.endswith("Request")}
    assert of_requests <= set(KINDS)


HALF = '{"model": "base", "prompt": "\\ud800"}'  # of a surrogate pair


@pytest.mark.parametrize(("body", "said"), [
    (HALF, "no JSON in UTF-8"), (HALF.encode("utf-16"), "no JSON in UTF-8"), (HALF.encode("utf-32-le"), "no JSON in UTF-8"),
    ('{"model": "base", "prompt": "a", "n": 1, "n": 2}', "field 'n' is there twice"), ("", "no JSON"), ("[]", "JSON object"),
    ('{"model": "base", "prompt": "a", "logit_bias": {"5": 1, "5": 2}}', "field '5' is there twice"),
])  # fmt: skip
def test_what_is_no_body_at_all(body, said):
    for start in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(RequestError, match=said):
            read(CompletionRequest, start + (body if isinstance(body, bytes) else body.encode()))


def test_a_byte_order_mark_and_whole_surrogate_pairs_are_read():
    body = b'\xef\xbb\xbf{"model": "base", "prompt": "\\ud83d\\ude00"}'
    assert read(CompletionRequest, body).prompt == "\U0001f600"


@pytest.mark.parametrize(("change", "said"), [
    ({"prompt": ["a"] * 513}, "at most 512"), ({"prompt": [None] * MANY}, "prompt = None"), ({"stop": ["a"] * 17}, "at most 16"),
    ({"prompt": [[1]] * 513}, "at most 512"), ({"logit_bias": {str(one): 1 for one in range(1025)}}, "1,025 tokens"),
    ({f"x{one}": 1 for one in range(200)}, "fields: 202"),
])  # fmt: skip
def test_what_is_said_of_too_many(change, said):
    with pytest.raises(RequestError, match=said) as caught:
        read(CompletionRequest, json.dumps({"model": "base", "prompt": "a"} | change).encode())
    assert len(str(caught.value)) <= 300


def test_a_field_that_is_null_is_as_if_it_were_not_there():
    nothing = {"parallel_tool_calls": None, "service_tier": None, "function_call": None, "response_format": None, "n": None}
    options = {"stream": True, "stream_options": {"include_usage": None}}
    body = {"model": "base", "messages": [{"role": "user", "content": "a"}], **nothing, **options}
    assert read(ChatRequest, json.dumps(body).encode()).n is None
    with pytest.raises(RequestError, match="prompt = None"):
        read(CompletionRequest, b'{"model": "base", "prompt": null}')
    with pytest.raises(RequestError, match="unknown field 'service_tier'"):
        read(ChatRequest, json.dumps(body | {"service_tier": "auto"}).encode())

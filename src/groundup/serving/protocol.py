"""What clients may send, in the words of OpenAI's API and, for sampling beyond it, of vLLM's.

A field that is not named here is refused by name, unless it is null. A field that is named is honoured, or its value is refused.
"""

import difflib
import json
from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from groundup.core.text import shown
from groundup.model.generation import MAX_TEMPERATURE

Penalty = Annotated[float, Field(ge=-2, le=2)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
MOST_ALTERNATIVES = 20
MOST_CHOICES = 512  # prompts times n
MOST_FIELDS = 100
MOST_BIASES = 1024
Texts = Annotated[list[str], Field(max_length=MOST_CHOICES, fail_fast=True)]
IdLists = Annotated[list[Ids], Field(max_length=MOST_CHOICES, fail_fast=True)]
Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
UNSUPPORTED: dict[str, Any] = {"best_of": 1, "suffix": None, "tools": [], "tool_choice": "none", "functions": [], "store": False}


class RequestError(Exception):
    """What a client got wrong; `kind` and `code` are OpenAI's."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, {"retry-after": "1"} if status in (429, 503) else {}
        self.body = {"error": {"message": message[:500], "type": kind, "param": param, "code": code}}


class Body(BaseModel):
    """Validation stops at the first errors: each error is an object, and a body of 8 MB could have millions of them.

    So long lists fail fast, and the fields of an object are counted before they are validated.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        if len(content) > MOST_FIELDS:
            raise ValueError(f"fields: {len(content):,} are more than there are")
        # Many clients send null for every field that is not set: it is as if it were not there.
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in content.items() if value is not None or name in required}


def _limit_biases(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MOST_BIASES:
        raise ValueError(f"{len(given):,} tokens, and at most {MOST_BIASES:,} may have one")
    return given


Kind = TypeVar("Kind", bound=Body)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False  # no event is padded here


class ResponseFormat(Body):
    type: Literal["text"]


class GenerationBody(Body):
    """The fields that both requests for text have."""

    model: str
    max_tokens: Annotated[int, Field(ge=0, le=2**20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, BeforeValidator(_limit_biases)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # who asks: nothing depends on it
    best_of: int | None = None
    suffix: None = None
    store: bool | None = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> "GenerationBody":
        for name, value in UNSUPPORTED.items():
            given = getattr(self, name, None)
            if given is not None and given != value:
                raise ValueError(f"{name}: not supported by this server")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream = true")
        if self.stop is not None and not all(self.stops):
            raise ValueError("stop: an empty text")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(GenerationBody):
    prompt: str | Texts | Ids | IdLists
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None


class ChatRequest(GenerationBody):
    messages: Annotated[Messages, Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    metadata: dict[str, Any] | None = None  # kept by OpenAI with what it stores, which nothing is here

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs = true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_completion_tokens: another number than max_tokens, its older name; give one of them")
        return self


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Ids


def read(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body. Raises RequestError, which names the field, for what is no request of this kind."""
    try:
        text = body.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_each_once)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs, written as escapes, are no text
    except RecursionError:
        raise RequestError("the body is nested too deep") from None
    except ValueError as error:  # also a number of thousands of digits
        raise RequestError(f"the body is no JSON in UTF-8: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object")
    try:
        return kind.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise _request_error(error, kind) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises RequestError for a name that is given twice, since one of its values would be ignored."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RequestError(f"field {shown(twice)} is there twice", twice[:100])
    return fields


def _request_error(error: ValidationError | RecursionError, kind: type[Body]) -> RequestError:
    if isinstance(error, RecursionError):
        return RequestError("the body is nested too deep")
    # A field of several types has an error for each type. Errors beyond the type say more, and of these the innermost.
    errors = error.errors()
    same_field = [entry for entry in errors if entry["loc"][:1] == errors[0]["loc"][:1]]
    first = max(same_field, key=lambda entry: (not entry["type"].endswith("_type"), len(entry["loc"])))
    param = str(first["loc"][0]) if first["loc"] else None
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[:100], kind.model_fields if where == param else (), n=1, cutoff=0.8)
        return RequestError(f"unknown field {shown(where)}: {f'did you mean {near[0]}?' if near else 'not read here'}", param)
    if first["type"] == "missing":
        return RequestError(f"{where} is missing", param)
    text = first["msg"].removeprefix("Value error, ")
    if param is None:
        param = text.partition(":")[0]
        return RequestError(text, param)
    if first["type"] in ("model_type", "dict_type"):
        text = "input should be an object"
    return RequestError(f"{param} = {shown(first['input'])}: {text[0].lower()}{text[1:]}", param)

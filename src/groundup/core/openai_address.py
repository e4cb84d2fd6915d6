"""An address that speaks OpenAI's interface, `http://HOST/v1#MODEL`, as of vLLM or of us: requests, and trying again.

The key, if the server wants one, is the environment's OPENAI_API_KEY.
"""

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from groundup.core.errors import UserError

logger = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds of one request
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 6, 1.0, 60.0  # seconds, doubled at each attempt: half a minute in all
LARGEST = 1 << 28  # bytes of an answer
TOO_MUCH = (400, 413, 422)  # status codes of a request that is refused for its content, such as too many tokens


class RequestRefused(Exception):
    """A request that this server will never answer."""


class OpenAIAddress:
    def __init__(self, name: str) -> None:
        """`name` is `ADDRESS#MODEL`; without a model, the server's only one. Raises UserError where it does not answer."""
        self.name = name
        self.address, _, self.model = name.partition("#")
        self.address = self.address.rstrip("/")
        try:
            urllib.parse.urlsplit(self.address).port  # noqa: B018 (for what it raises: the machine takes 99999 for 34463)
        except ValueError as error:
            raise UserError(f"{self.address[:200]}: not an address ({str(error)[:80]})") from None
        self._open = urllib.request.build_opener(_NoRedirects).open
        if not self.model:
            entries = self.request("/models", None).get("data")
            names = [str(entry.get("id")) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
            if len(names) != 1:
                raise UserError(f"{self.address}: models there: {', '.join(names) or 'none'}; give ADDRESS#MODEL"[:300])
            self.model = names[0]

    def request(self, path: str, content: dict[str, Any] | None) -> dict[str, Any]:
        """The server's answer. Passing errors, such as too many requests, are tried again, with longer and longer waits.

        Raises RequestRefused for a request that is refused for its content, UserError where there is no answer to read.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        body = None if content is None else json.dumps(content).encode()
        wait = FIRST_WAIT
        for attempt in range(ATTEMPTS):
            retry_after = None
            try:
                request = urllib.request.Request(self.address + path, body, headers)
                with self._open(request, timeout=TIMEOUT) as response:
                    return self._read(response.read(LARGEST + 1))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_message(error)}"
                if error.code in TOO_MUCH:
                    raise RequestRefused(reason) from None
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise UserError(f"{self.address}{path}: the server answers {reason}"[:300]) from None
                retry_after = error.headers.get("Retry-After")
            except (OSError, http.client.HTTPException) as error:  # URLError and time-outs among them
                reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            except ValueError as error:
                raise UserError(f"{self.address}: not an address ({str(error)[:80]})") from None
            if attempt < ATTEMPTS - 1:
                pause = min(
                    LONGEST_WAIT, float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else wait
                )
                logger.warning("%s%s: %s; tried again in %.0f s", self.address, path, reason[:150], pause)
                time.sleep(pause)
                wait *= 2
        failure = f"{self.address}{path}: no answer in {ATTEMPTS} attempts: {reason[:100]}"
        raise UserError(f"{failure}; is it the right address, and does the server run?")

    def _read(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content) if len(content) <= LARGEST else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"{self.address}: the answer is no JSON object; is it an OpenAI-compatible server?")
        return answer


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is sent to the given address only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _message(error: urllib.error.HTTPError) -> str:
    """The message in the body of an error, shortened."""
    try:
        body = json.loads(error.read(1 << 16))
        body = body.get("error", body)
        text = str(body.get("message", body) if isinstance(body, dict) else body)
    except (ValueError, OSError, AttributeError, RecursionError, http.client.HTTPException):
        text = error.reason
    return " ".join(str(text).split())[:120]

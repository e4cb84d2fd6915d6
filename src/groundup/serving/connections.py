"""Connections that bring no complete request, and those whose client reads nothing, are closed.

Each takes one of the files that a process may have open; when these are used up, nobody else is answered.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 60.0  # for a request, from its first byte to its last, and for a part of an answer to be read


class Connection(H11Protocol):
    """For uvicorn's `http`. An answer may take as long as it needs; only what the client has to do has a time limit."""

    request_timer: asyncio.TimerHandle | None = None  # while its request is incomplete
    reading_timer: asyncio.TimerHandle | None = None  # while it has not read all that was sent

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Nothing is written beyond what the system takes: so a client that does not read is always noticed.
        transport.set_write_buffer_limits(high=0)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self.reading_timer = _cancelled(self.reading_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.request_timer, self.reading_timer = _cancelled(self.request_timer), _cancelled(self.reading_timer)
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.request_timer = _cancelled(self.request_timer)
        elif self.request_timer is None:
            self.request_timer = self.loop.call_later(SECONDS, self.transport.abort)

    def _expect_reading(self, unread_before: int) -> None:
        """Close the connection if none of `unread_before` bytes are read in time."""

        def check() -> None:
            unread_bytes = self.transport.get_write_buffer_size()
            if unread_bytes < unread_before:
                self._expect_reading(unread_bytes)
            else:
                self.transport.abort()

        _cancelled(self.reading_timer)
        self.reading_timer = self.loop.call_later(SECONDS, check)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

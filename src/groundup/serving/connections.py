"""Connections that bring no whole request, and those whose client reads nothing, are ended.

Each holds a place among the files that a process may have open; where none is left, nobody else is answered.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 60.0  # for a request, from its first byte to its last, and for a part of an answer to be read


class Connection(H11Protocol):
    """For uvicorn's `http`. An answer may take as long as it does; only what the client is to do is waited for no longer."""

    late: asyncio.TimerHandle | None = None  # where its request is not whole
    unread: asyncio.TimerHandle | None = None  # where it has not read all that was sent

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
        self._expect_less_than(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread = _ended(self.unread)

    def connection_lost(self, exc: Exception | None) -> None:
        self.late, self.unread = _ended(self.late), _ended(self.unread)
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.late = _ended(self.late)
        elif self.late is None:
            self.late = self.loop.call_later(SECONDS, self.transport.abort)

    def _expect_less_than(self, size: int) -> None:
        """Of `size` bytes some must be read in time."""

        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left < size:
                self._expect_less_than(left)
            else:
                self.transport.abort()

        _ended(self.unread)
        self.unread = self.loop.call_later(SECONDS, look)


def _ended(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

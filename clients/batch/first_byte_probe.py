"""A row that is asked for as a stream, to see by its first byte whether it had to wait at the server."""

import asyncio

from clients.batch import stream
from clients.batch.connection import Headers
from clients.batch.pool import Pool
from clients.batch.replica import Replica
from clients.errors import ChatError, RejectedError


class Sounding:
    """One such request, from its sending on.

    Args:
        pool: Told of the changes of the limit that follow.
        replica: Where it goes.
    """

    def __init__(self, pool: Pool, replica: Replica) -> None:
        self._pool, self._replica = pool, replica
        self._sent_at = asyncio.get_running_loop().time()
        self._first_s: float | None = None
        self._is_stream = True
        replica.controller.sounding_sent()

    def begun(self, status: int, headers: Headers) -> None:
        """Take note that the reply's body begins."""
        if status != 200:
            return
        now = asyncio.get_running_loop().time()
        self._first_s = now - self._sent_at
        self._is_stream = headers.get(b"content-type", b"").startswith(stream.CONTENT_TYPE)
        if self._is_stream:
            self._pool.report(self._replica, self._replica.controller.first_byte(self._sent_at, now))

    @property
    def first_s(self) -> float | None:
        """Seconds to the first byte of the answer; None when it did not come as a stream."""
        return self._first_s if self._is_stream else None

    def ended(self, error: ChatError | None, tokens: int | None) -> None:
        """Take note of its end, whatever it was."""
        now, controller = asyncio.get_running_loop().time(), self._replica.controller
        if error is not None or self._first_s is None:
            controller.sounding_failed(was_refused=isinstance(error, RejectedError))
        elif not self._is_stream or tokens is None:
            controller.sounding_failed(was_refused=True, for_good=True)
        else:
            change = controller.sounding_ended(self._first_s, now - self._sent_at, tokens, now)
            self._pool.report(self._replica, change)

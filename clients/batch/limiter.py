"""How many requests may be in flight."""

import asyncio
import collections

from clients.errors import SettingsError


class Limiter:
    """A number of slots that rows hold only while the server works on them, never while they wait to be retried.

    Args:
        limit: Slots, at least 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise SettingsError(f"concurrency must be at least 1, found {limit}")
        self.limit = limit
        self.in_flight = 0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    async def acquire(self) -> None:
        """Wait for a free slot and take it."""
        while self.in_flight >= self.limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._call_next()  # the slot may have been given to this turn just before
                raise
        self.in_flight += 1

    def release(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break

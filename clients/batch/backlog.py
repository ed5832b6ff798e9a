"""What is still to be sent: rows that have not been tried, and rows that wait for another attempt."""

import asyncio
import dataclasses
import heapq
from collections.abc import Iterator

from clients.records import ChatRequest


@dataclasses.dataclass(slots=True)
class Work:
    """One row on its way.

    Attributes:
        attempts: Attempts the server may have worked on.
        last_error: Code and message of the last failure.
    """

    request: ChatRequest
    attempts: int = 0
    last_error: tuple[str, str] = ("", "")


class Backlog:
    """Hands out the next row: a retry that is due before a new row, and nothing twice.

    New rows are read from `requests` one at a time, so an input of any size is never in memory.
    """

    def __init__(self, requests: Iterator[ChatRequest]) -> None:
        self._requests = requests
        self._retries: list[tuple[float, int, Work]] = []
        self._open = 0
        self._exhausted = False
        self._changed = asyncio.Event()

    async def take(self) -> Work | None:
        """The next row to send; waits while rows may still come back; None when every row is finished."""
        while True:
            if (work := self._next()) is not None:
                self._open += 1
                return work
            if self._exhausted and not self._retries and not self._open:
                return None
            self._changed.clear()
            delay = self._retries[0][0] - asyncio.get_running_loop().time() if self._retries else None
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def again(self, work: Work, delay_s: float) -> None:
        """Give a row back, to be handed out again after `delay_s` seconds."""
        heapq.heappush(self._retries, (asyncio.get_running_loop().time() + delay_s, work.request.row, work))
        self.finished()

    def finished(self) -> None:
        """Say that a row that was handed out has ended, or was given back."""
        self._open -= 1
        self._changed.set()

    @property
    def waiting(self) -> int:
        """Rows that wait for another attempt."""
        return len(self._retries)

    def _next(self) -> Work | None:
        if self._retries and self._retries[0][0] <= asyncio.get_running_loop().time():
            return heapq.heappop(self._retries)[2]
        if self._exhausted:
            return None
        request = next(self._requests, None)
        self._exhausted = request is None
        return None if request is None else Work(request)

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
    """

    request: ChatRequest
    attempts: int = 0


class Backlog:
    """Hands out the next row: a retry that is due before a new row, and nothing twice.

    New rows are read one at a time, and none while very many wait for another attempt, so an input of any size is never
    in memory, not even while the server refuses everything.

    Args:
        requests: The rows. None among them lets the event loop look after its other tasks.
        max_waiting: Waiting rows from which on no new ones are read.
    """

    def __init__(self, requests: Iterator[ChatRequest | None], *, max_waiting: int = 1024) -> None:
        self._requests = requests
        self._max_waiting = max_waiting
        self._retries: list[tuple[float, int, Work]] = []
        self._open = 0
        self._exhausted = False
        self._changed = asyncio.Event()

    async def take(self) -> Work | None:
        """The next row to send; waits while rows may still come back; None when every row is finished."""
        while True:
            if (work := self._due_retry()) is not None:
                self._open += 1
                return work
            if not self._exhausted and len(self._retries) < self._max_waiting:
                if (request := self._read()) is not None:
                    self._open += 1
                    return Work(request)
                await asyncio.sleep(0)
                continue
            if not self._retries and not self._open:
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
    def in_flight(self) -> int:
        """Rows that are handed out."""
        return self._open

    @property
    def waiting(self) -> int:
        """Rows that wait for another attempt."""
        return len(self._retries)

    def _due_retry(self) -> Work | None:
        if self._retries and self._retries[0][0] <= asyncio.get_running_loop().time():
            return heapq.heappop(self._retries)[2]
        return None

    def _read(self) -> ChatRequest | None:
        try:
            return next(self._requests)
        except StopIteration:
            self._exhausted = True
            return None

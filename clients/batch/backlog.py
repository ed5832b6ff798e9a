"""What is still to be sent: rows that have not been tried, and rows that wait for another attempt."""

import asyncio
import dataclasses
import datetime as dt
import heapq
from collections.abc import Iterator
from typing import Any

from clients.records import ChatRequest


@dataclasses.dataclass(slots=True)
class Ending:
    """What a row may end with.

    Attributes:
        fields: `ChatResult` fields that only its answer or its failure tells.
        started_at: UTC time at which the request was sent.
        latency_s: Seconds it took.
        endpoint: Base URL it was sent to.
        first_token_s: Seconds to the first byte of the answer, where it came as a stream.
    """

    fields: dict[str, Any]
    started_at: dt.datetime
    latency_s: float
    endpoint: str
    first_token_s: float | None = None


@dataclasses.dataclass(slots=True)
class Work:
    """One row on its way.

    Attributes:
        attempts: Attempts the server may have worked on.
        refusals: Times a server had no room for it (429, 503).
        free_failures: Times it failed because its server was going down.
        not_before: `loop.time()` before which the server does not want to see it again.
        needs_fresh: The server closed an idle connection as it was sent; the next request takes a new connection.
        flights: Requests for it that are under way, oldest first.
        payload: What is sent instead of the request as it came; None for that.
        had_second_chance: Whether an answer that was not `ok` was asked for once more.
        fallback: What it ends with if nothing better comes: that answer, else its last failure.
        is_queued: Whether it waits for another attempt.
        done: Whether it has its outcome.
    """

    request: ChatRequest
    attempts: int = 0
    refusals: int = 0
    free_failures: int = 0
    not_before: float = 0.0
    needs_fresh: bool = False
    flights: list[Any] = dataclasses.field(default_factory=list)
    payload: bytes | None = None
    had_second_chance: bool = False
    fallback: Ending | None = None
    is_queued: bool = False
    done: bool = False


class Backlog:
    """Hands out the next row: a retry that is due before a new row, and nothing twice.

    New rows are read one at a time, and none while very many wait for another attempt, so an input of any size is never
    in memory, not even while the server refuses everything.

    Args:
        requests: The rows. None among them lets the event loop look after its other tasks.
        max_waiting: Waiting rows from which on no new ones are read.

    Attributes:
        is_exhausted: Whether every row has been handed out at least once.
    """

    def __init__(self, requests: Iterator[ChatRequest | None], *, max_waiting: int = 1024) -> None:
        self._requests = requests
        self._max_waiting = max_waiting
        self._retries: list[tuple[float, int, Work]] = []
        self._open = 0
        self.is_exhausted = False
        self._changed = asyncio.Event()

    def take_now(self) -> Work | None:
        """The next row to send, if one is at hand."""
        work = self._due_retry()
        if work is None and self._may_read:
            request = self._read()
            work = None if request is None else Work(request)
        if work is not None:
            self._open += 1
        return work

    async def take(self) -> Work | None:
        """The next row to send; waits while rows may still come back; None when every row is finished."""
        while True:
            if (work := self.take_now()) is not None:
                return work
            if self._may_read:
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
        """Give a row back, to be handed out again after `delay_s` seconds and not before its `not_before`."""
        work.is_queued = True
        due = max(asyncio.get_running_loop().time() + delay_s, work.not_before)
        heapq.heappush(self._retries, (due, work.request.row, work))
        self.finished()

    def finished(self) -> None:
        """Say that a row that was handed out has ended, or was given back."""
        self._open -= 1
        self._changed.set()

    def drop(self) -> list[Work]:
        """Take out every row that waits for another attempt."""
        dropped = [work for _, _, work in self._retries]
        self._retries.clear()
        self._open += len(dropped)
        return dropped

    @property
    def in_flight(self) -> int:
        """Rows that are handed out."""
        return self._open

    @property
    def waiting(self) -> int:
        """Rows that wait for another attempt."""
        return len(self._retries)

    @property
    def _may_read(self) -> bool:
        return not self.is_exhausted and len(self._retries) < self._max_waiting

    def _due_retry(self) -> Work | None:
        if self._retries and self._retries[0][0] <= asyncio.get_running_loop().time():
            work = heapq.heappop(self._retries)[2]
            work.is_queued = False
            return work
        return None

    def _read(self) -> ChatRequest | None:
        try:
            return next(self._requests)
        except StopIteration:
            self.is_exhausted = True
            return None

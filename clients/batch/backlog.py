"""What is still to be sent: rows that have not been tried, and rows that wait for another attempt."""

import asyncio
import collections
import dataclasses
import datetime as dt
import heapq
from collections.abc import Iterator
from typing import Any

from clients.records import ChatRequest

#: Most rows that were set aside and are under way at once.
_MOST_ASIDE = 1024

#: Seconds after which rows that were set aside no longer hold others back: what ends a server does so soon, as a rule,
#: and an honest answer may take twenty minutes.
_HARMLESS_S = 30.0


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
        fell_on: The replica on which its last request failed as those of a dying server do, at `loop.time()` `fell_at`,
            when it had `fell_attempts`, with as much blame as `fell_blame` if that one died then.
        deaths: How many deaths of a server it was under way at.
        last_death: The replica that died last of these, and when.
        blame: How sure it is that it was what the server died of, see `clients.batch.suspects`.
        is_aside: Whether it is kept apart from other rows, see `Backlog.set_aside`.
        is_alone: Whether nothing else may be under way with it.
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
    fell_on: Any = None
    fell_at: float = 0.0
    fell_attempts: int = 0
    fell_blame: int = 0
    deaths: int = 0
    last_death: Any = None
    blame: int = 0
    is_aside: bool = False
    is_alone: bool = False
    done: bool = False


class Backlog:
    """Hands out the next row: a retry that is due before a new row, rows set aside at the end, and nothing twice.

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
        self._aside: collections.deque[Work] = collections.deque()
        self._aside_at_once = 0  # before their time has come
        self._from_aside: list[Work] = []
        self._lone: Work | None = None  # the row that is under way alone
        self._open = 0
        self.is_exhausted = False
        self._changed = asyncio.Event()

    def take_now(self) -> Work | None:
        """The next row to send, if one is at hand."""
        work = self._due_retry()
        if work is None and self._may_read:
            request = self._read()
            work = None if request is None else Work(request)
        if work is None:
            work = self._one_aside()
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
            if not self._retries and not self._aside and not self._open:
                return None
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._next_at):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def again(self, work: Work, delay_s: float) -> None:
        """Give a row back, to be handed out again after `delay_s` seconds and not before its `not_before`."""
        work.is_queued = True
        due = max(asyncio.get_running_loop().time() + delay_s, work.not_before)
        heapq.heappush(self._retries, (due, work.request.row, work))
        self._give_back()

    def set_aside(self, work: Work) -> None:
        """Give a row back that may be what its server died of, to be handed out when nothing else is left to send.

        Such rows go one at a time at first, then twice as many with each that comes back, or when all have been under
        way for long. Those that are under way when a server dies again go alone from then on: another death costs more.
        """
        self._aside_at_once = min(1, self._aside_at_once)
        work.is_alone = work.is_aside  # from now on
        work.is_queued = work.is_aside = True
        self._aside.append(work)
        self._give_back()

    def finished(self) -> None:
        """Say that a row that was handed out has ended."""
        self._aside_at_once = min(2 * self._aside_at_once, _MOST_ASIDE)
        self._give_back()

    def _give_back(self) -> None:
        self._open -= 1
        self._lone = None
        self._changed.set()

    def drop(self) -> list[Work]:
        """Take out every row that waits for another attempt."""
        dropped = [*(work for _, _, work in self._retries), *self._aside]
        self._retries.clear()
        self._aside.clear()
        self._open += len(dropped)
        return dropped

    @property
    def in_flight(self) -> int:
        """Rows that are handed out."""
        return self._open

    @property
    def waiting(self) -> int:
        """Rows that wait for another attempt."""
        return len(self._retries) + len(self._aside)

    @property
    def _may_read(self) -> bool:
        return not self.is_exhausted and len(self._retries) < self._max_waiting

    @property
    def _next_at(self) -> float | None:
        """When a row may be at hand although none comes back; None for never."""
        if self._retries:
            return self._retries[0][0]
        return self._harmless_at if self._aside and self._aside_at_once else None

    @property
    def _harmless_at(self) -> float | None:
        """When the rows that were set aside and are under way no longer hold others back; None before all are sent."""
        self._from_aside = [work for work in self._from_aside if not (work.done or work.is_queued)]
        if not self._from_aside or not all(work.flights for work in self._from_aside):
            return None
        return float(max(work.flights[0].started for work in self._from_aside) + _HARMLESS_S)

    def _due_retry(self) -> Work | None:
        if self._retries and self._retries[0][0] <= asyncio.get_running_loop().time():
            work = heapq.heappop(self._retries)[2]
            work.is_queued, self._lone = False, work if work.is_alone else None
            return work
        return None

    def _one_aside(self) -> Work | None:
        if not self._aside or self._retries or not self.is_exhausted:
            return None
        if not self._open:
            self._aside_at_once = max(1, self._aside_at_once)
        elif not self._aside_at_once:
            return None
        elif (due := self._harmless_at) is not None and asyncio.get_running_loop().time() >= due:
            self._aside_at_once = min(2 * max(self._open, self._aside_at_once), _MOST_ASIDE)
        elif self._lone is not None or self._aside[0].is_alone or self._open >= self._aside_at_once:
            return None
        work = self._aside.popleft()
        self._from_aside.append(work)
        if self._open:  # nobody is alone then
            work.is_alone = False
            if self._lone is not None:
                self._lone.is_alone = False
        work.is_queued, self._lone = False, work if work.is_alone else None
        return work

    def _read(self) -> ChatRequest | None:
        try:
            return next(self._requests)
        except StopIteration:
            self.is_exhausted = True
            return None

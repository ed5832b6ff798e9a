"""Commits finished rows every second or every few hundred rows, off the event loop."""

import asyncio
import concurrent.futures
import contextlib
import logging
from types import TracebackType
from typing import Self

from clients.batch.ledger import Ledger
from clients.errors import StorageError
from clients.events import emit
from clients.records import ChatResult
from clients.tracing.tracer import NoTracer, Tracer

logger = logging.getLogger(__name__)

#: How often answers become a segment; until then the journal has them.
COMMIT_INTERVAL_S = 1.0
COMMIT_ROWS = 512

#: Finished rows that may wait for a slow disk before new rows are held back.
_MAX_UNCOMMITTED = 8 * COMMIT_ROWS

#: A full disk is tried again after these seconds, with no new rows sent meanwhile, before the run is given up.
PATIENCE_S = (1.0, 4.0, 10.0, 15.0)


class Committer:
    """Collects results and commits them. An async context manager; leaving it commits what is left, whatever happened.

    Args:
        ledger: Where to.
        patience_s: Seconds between two tries on a disk that refuses; after the last one the run is given up.
        tracer: Told of the rows once they are kept.
    """

    def __init__(
        self, ledger: Ledger, *, patience_s: tuple[float, ...] = PATIENCE_S, tracer: Tracer | None = None
    ) -> None:
        self._ledger = ledger
        self._tracer = tracer or NoTracer()
        self._patience_s = patience_s
        self._pending: list[ChatResult] = []
        self._journal = ledger.journal()
        self._unwritten: list[ChatResult] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "commit")
        self._due = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._group = asyncio.TaskGroup()
        self._loop: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._loop = self._group.create_task(self._commit_regularly())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if error is None:
            self._closing = True
            self._due.set()
        elif self._loop is not None:
            self._loop.cancel()
        try:
            await self._group.__aexit__(kind, error, at)
        finally:
            self._thread.shutdown(wait=True)
            self._commit_rest()

    def add(self, result: ChatResult) -> None:
        """Take a finished row; it is safe from a kill at once, and committed within about a second."""
        self._pending.append(result)
        if self._journal is not None:
            if not self._unwritten:  # what is finished in one turn of the loop is written together
                asyncio.get_running_loop().call_soon(self._write_journal)
            self._unwritten.append(result)
        if len(self._pending) >= COMMIT_ROWS:
            self._due.set()
        if len(self._pending) >= _MAX_UNCOMMITTED:
            self._room.clear()

    @property
    def has_room(self) -> bool:
        """Whether `room` would not have to wait."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until another row may be started: answers come faster than they can be kept, or cannot be kept now."""
        await self._room.wait()

    async def _commit_regularly(self) -> None:
        while self._pending or not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_INTERVAL_S):
                    await self._due.wait()
            self._due.clear()
            if self._pending:
                await self._commit_patiently()
            if len(self._pending) < _MAX_UNCOMMITTED:
                self._room.set()

    async def _commit_patiently(self) -> None:
        for delay_s in (*self._patience_s, None):
            batch, journaled = self._pending[:], self._turn_journal()
            try:
                # The thread itself removes what it has kept, so a cancelled wait leaves no doubt about the batch.
                await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, batch, journaled)
            except StorageError as error:
                self._room.clear()
                emit(logger, "commit.failed", rows=len(batch), reason=str(error), retry_in_s=delay_s)
                if delay_s is None:
                    raise
                await asyncio.sleep(delay_s)
            else:
                return

    def _commit(self, batch: list[ChatResult], journaled: int) -> None:
        self._ledger.commit(batch)
        del self._pending[: len(batch)]
        if self._journal is not None:
            self._journal.drop(journaled)
        self._tracer.committed(batch)

    def _commit_rest(self) -> None:
        if self._pending:
            self._commit(self._pending[:], self._turn_journal())

    def _write_journal(self) -> None:
        if self._journal is not None and self._unwritten:
            self._journal.write(self._unwritten)
            self._unwritten = []

    def _turn_journal(self) -> int:
        """Begin a new journal; returns how many files hold what is committed next."""
        self._write_journal()
        return 0 if self._journal is None else self._journal.turn()

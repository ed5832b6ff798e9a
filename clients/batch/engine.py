"""The run loop: rows in, requests out, answers committed. It knows neither files nor HTTP, only their owners."""

import asyncio
import dataclasses
import datetime as dt
import logging
import random
import time
from collections.abc import Iterator
from typing import Any

from clients.batch.answers import read_answer
from clients.batch.backlog import Backlog, Work
from clients.batch.chat import ChatClient
from clients.batch.commits import Committer
from clients.batch.limiter import Limiter
from clients.batch.progress import Progress
from clients.batch.retry import RetryPolicy
from clients.errors import ChatError, EndpointError, RejectedError, UnreachableError
from clients.events import emit
from clients.records import ChatRequest, ChatResult, Outcome

logger = logging.getLogger(__name__)

#: Seconds without new requests after a connection could not be made; the rows concerned lose no attempt.
_UNREACHABLE_PAUSE_S = 1.0

#: Refusals that say nothing about the row but what the endpoint has or allows just now (no credit, no such model, no
#: such path): another attempt is useless, but a later run may fare better, so the row is `failed`, not `rejected`.
_NOT_THE_ROW = ("http_402", "http_403", "http_404", "http_405", "http_407")

#: Failures of requests that were under way when the server went; they do not say that it is back.
_NO_SIGN_OF_LIFE = ("connection", "timeout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a shard is run.

    Attributes:
        retry: When a row is tried again.
        server_wait_s: Seconds without any connection to the endpoint after which the run is given up. What was
            committed stays, and the same command goes on from there.
    """

    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    server_wait_s: float = 600.0


class Engine:
    """Sends every row until it has an outcome.

    Args:
        chat: The endpoint.
        committer: Where finished rows are kept.
        limiter: How many requests may be in flight.
        progress: What is counted and reported.
        settings: See EngineSettings.
    """

    def __init__(
        self, *, chat: ChatClient, committer: Committer, limiter: Limiter, progress: Progress, settings: EngineSettings
    ) -> None:
        self._chat, self._committer, self._limiter, self._progress = chat, committer, limiter, progress
        self._settings = settings
        self._rng = random.Random()  # noqa: S311  (jitter, not a secret)
        self._unreachable_since: float | None = None
        self._not_before = 0.0
        self._answered = False

    async def run(self, requests: Iterator[ChatRequest | None]) -> None:
        """Bring every request to an outcome and commit it.

        Args:
            requests: See Backlog.

        Raises:
            EndpointError: the endpoint is gone or refuses the key. Everything answered before is committed.
            StorageError: answers can no longer be kept.
        """
        backlog = Backlog(requests)
        async with self._committer, asyncio.TaskGroup() as group:
            reporter = group.create_task(self._report(backlog))
            while True:
                await self._committer.room()
                await self._server_back()
                await self._limiter.acquire()
                work = await backlog.take()
                if work is None:
                    self._limiter.release()
                    break
                group.create_task(self._attempt(work, backlog))
            reporter.cancel()

    async def _report(self, backlog: Backlog) -> None:
        while True:
            self._progress.report(in_flight=backlog.in_flight, waiting=backlog.waiting)
            await asyncio.sleep(0.5)

    async def _server_back(self) -> None:
        pause_s = self._not_before - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)

    async def _attempt(self, work: Work, backlog: Backlog) -> None:
        started_at, start = dt.datetime.now(dt.UTC), time.monotonic()
        try:
            try:
                fields = read_answer(work.request, await self._chat.complete(work.request.payload))
            finally:
                self._limiter.release()
        except ChatError as error:
            self._failed(work, error, backlog, started_at, time.monotonic() - start)
            return
        work.attempts += 1
        self._unreachable_since, self._answered = None, True
        self._finish(work, backlog, fields, started_at, time.monotonic() - start)

    def _failed(
        self, work: Work, error: ChatError, backlog: Backlog, started_at: dt.datetime, latency_s: float
    ) -> None:
        if isinstance(error, UnreachableError):
            self._wait_for_server(error)
            backlog.again(work, 0)
            return
        if error.code not in _NO_SIGN_OF_LIFE:
            self._unreachable_since = None
        if error.code == "http_401" or (error.code == "http_403" and not self._answered):
            raise EndpointError(
                f"{self._chat.base_url} refuses the key ({error.code.removeprefix('http_')}: {error}). "
                "Set OPENAI_API_KEY to a key it accepts and run the same command again."
            ) from error
        work.attempts += 1
        delay_s = self._settings.retry.delay_s(error, work.attempts, self._rng)
        if delay_s is not None:
            self._progress.retries += 1
            backlog.again(work, delay_s)
            return
        never = isinstance(error, RejectedError) and error.code not in _NOT_THE_ROW
        outcome = Outcome.REJECTED if never else Outcome.FAILED
        fields = {"outcome": outcome, "error_code": error.code, "error_message": str(error)}
        self._finish(work, backlog, fields, started_at, latency_s)

    def _wait_for_server(self, error: UnreachableError) -> None:
        now = time.monotonic()
        self._not_before = now + _UNREACHABLE_PAUSE_S * (0.5 + self._rng.random())
        if self._unreachable_since is None:
            self._unreachable_since = now
            emit(logger, "endpoint.unreachable", endpoint=self._chat.base_url, reason=str(error))
        if now - self._unreachable_since > self._settings.server_wait_s:
            raise EndpointError(
                f"{self._chat.base_url} could not be reached for {self._settings.server_wait_s:g} s ({error}). "
                "Committed rows are kept: bring the server back and run the same command again."
            ) from error

    def _finish(
        self, work: Work, backlog: Backlog, fields: dict[str, Any], started_at: dt.datetime, latency_s: float
    ) -> None:
        request = work.request
        fields["model"] = fields.get("model") or request.body.get("model")
        result = ChatResult(
            row=request.row,
            id=request.id,
            request_hash=request.request_hash,
            attempts=work.attempts,
            started_at=started_at,
            latency_s=latency_s,
            endpoint=self._chat.base_url,
            **fields,
        )
        self._committer.add(result)
        self._progress.finish(result)
        backlog.finished()

"""The run loop: rows in, requests out, answers committed. It knows neither files nor HTTP, only their owners."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from clients.batch.answers import read_answer
from clients.batch.backlog import Backlog, Ending, Work
from clients.batch.budgets import Budgets
from clients.batch.commits import Committer
from clients.batch.failures import costs_an_attempt
from clients.batch.first_byte_probe import Sounding
from clients.batch.flights import Flight, Flights
from clients.batch.hedging import Rescue
from clients.batch.policies import Policies, first_payload
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.batch.replica import Replica
from clients.batch.retry import RetryPolicy
from clients.batch.stream import streamed
from clients.batch.suspects import is_suspect, is_to_blame, note_fall
from clients.batch.watch import Watch
from clients.errors import ChatError, EndpointError, OverloadedError, RejectedError, TransientError, UnreachableError
from clients.events import emit
from clients.records import ChatRequest, ChatResult, Outcome
from clients.tracing.tracer import NoTracer, Tracer

logger = logging.getLogger(__name__)

#: Refusals that say nothing about the row but what the endpoint has or allows just now (no credit, no such model, no
#: such path): another attempt is useless, but a later run may fare better, so the row is `failed`, not `rejected`.
_NOT_THE_ROW = ("http_402", "http_403", "http_404", "http_405", "http_407")

#: Failures that a row may have for nothing, because the server was going down; a row that brings it down every time
#: must not do so for ever.
_FREE_FAILURES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a shard is run.

    Attributes:
        retry: When a row is tried again.
        policies: What happens to answers that are not `ok`.
        budgets: What the run may spend.
        keep_raw: Whether every answer is kept as the server sent it, too.
    """

    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    policies: Policies = dataclasses.field(default_factory=Policies)
    budgets: Budgets = dataclasses.field(default_factory=Budgets)
    keep_raw: bool = False


class Engine:
    """Sends every row until it has an outcome.

    Args:
        pool: The replicas.
        committer: Where finished rows are kept.
        progress: What is counted and reported.
        settings: See EngineSettings.
        learn: Told of every answer and its completion tokens, where the server counts them.
        tracer: Told of every row that has its outcome.

    Attributes:
        stop_reason: Why the run ended before its last row, or None.
        seconds: Where the time went, see `Verdict.seconds`; empty before the run has ended.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        committer: Committer,
        progress: Progress,
        settings: EngineSettings,
        learn: Callable[[ChatRequest, int], None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._pool, self._committer, self._progress, self._settings = pool, committer, progress, settings
        self._learn = learn
        self._tracer = tracer or NoTracer()
        self.stop_reason: str | None = None
        self.seconds: dict[str, float] = {}
        self._rng = random.Random()  # noqa: S311  (jitter, not a secret)
        self._flights = Flights()
        self._now: Callable[[], float] = time.monotonic  # the loop's own clock, from `run` on
        self._held: Work | None = None  # the row for which the feeder waits for room

    async def run(self, requests: Iterator[ChatRequest | None]) -> None:
        """Bring every request to an outcome and commit it, unless a budget ends the run first.

        Args:
            requests: See Backlog.

        Raises:
            EndpointError: the endpoint is gone or refuses the key. Everything answered before is committed.
            StorageError: answers can no longer be kept.
        """
        backlog, self._now = Backlog(requests), asyncio.get_running_loop().time
        async with self._committer, self._pool, asyncio.TaskGroup() as group:
            feeder = group.create_task(self._feed(backlog, group))

            def stop(reason: str) -> None:
                if not feeder.done():
                    self.stop_reason = reason
                    feeder.cancel()

            watch = Watch(
                flights=self._flights,
                backlog=backlog,
                pool=self._pool,
                progress=self._progress,
                budgets=self._settings.budgets,
                rescue=Rescue(
                    flights=self._flights,
                    backlog=backlog,
                    pool=self._pool,
                    max_attempts=self._settings.retry.max_attempts,
                    send=lambda work, replica: self._send(work, replica, backlog, group),
                ),
                stop=stop,
            )
            watcher = group.create_task(watch.run())
            await asyncio.wait([feeder])
            if self.stop_reason is not None:
                await self._land(backlog)
            watcher.cancel()
        self.seconds = watch.verdict.seconds

    # --------------------------------------------------------------------- sending

    async def _feed(self, backlog: Backlog, group: asyncio.TaskGroup) -> None:
        while True:
            await self._committer.room()
            work = await backlog.take()
            if work is None:
                return
            if not self._may_go(work, backlog):
                continue
            self._held = work
            replica = await self._pool.acquire()
            if (next_work := self._take(backlog)) is not None:
                self._send(next_work, replica, backlog, group)
            else:  # the row was sent by a request that came back meanwhile
                self._pool.leave(replica)
                self._pool.wake()

    def _send(self, work: Work, replica: Replica, backlog: Backlog, group: asyncio.TaskGroup) -> None:
        group.create_task(self._fly(self._flights.start(work, replica), backlog))

    async def _fly(self, flight: Flight | None, backlog: Backlog) -> None:
        """Send a request, and when it is back the next one: a task for each would take 5 us a row more."""
        while flight is not None:
            error: ChatError | None = None
            fields: dict[str, Any] = {}
            try:
                fields = await self._exchange(flight)
            except ChatError as failure:
                error = failure
            finally:
                self._flights.land(flight)
                if flight.sounding is not None:
                    flight.sounding.ended(error, fields.get("completion_tokens"))
            if not (flight.is_unwanted or flight.work.done):
                if error is None:
                    self._answer(flight, fields, backlog)
                else:
                    self._pool.wake()  # what follows may take a while
                    await self._failed(flight, error, backlog, self._now() - flight.started)
            flight = self._next(backlog)
        self._pool.wake()

    def _next(self, backlog: Backlog) -> Flight | None:
        """The next request, if there is room for one and a row at hand."""
        if self.stop_reason is not None or not self._committer.has_room:
            return None
        if (replica := self._pool.try_acquire()) is None:
            return None
        if (work := self._take(backlog)) is None:
            self._pool.leave(replica)
            return None
        return self._flights.start(work, replica)

    def _take(self, backlog: Backlog) -> Work | None:
        work, self._held = self._held, None
        while work is None:
            work = backlog.take_now()
            if work is None or self._may_go(work, backlog):
                break
            work = None
        return work

    def _may_go(self, work: Work, backlog: Backlog) -> bool:
        """Whether a row may be sent; one that may be what servers die of is set aside, or ends where that is sure."""
        if not is_suspect(work):
            return True
        if is_to_blame(work) and work.fallback is not None:
            work.attempts += 1
            told = work.fallback.fields
            if told["outcome"] is Outcome.FAILED:
                told["error_message"] = (
                    f"the server went down {work.deaths} times while it worked on this row; see its log before the row "
                    f"is sent again ({told['error_message']})"
                )
            self._end(work, backlog)
            return False
        emit(logger, "row.set_aside", row=work.request.row, deaths=work.deaths)
        backlog.set_aside(work)
        return False

    async def _exchange(self, flight: Flight) -> dict[str, Any]:
        """Send the request, wait for its answer and read it."""
        work = flight.work
        connection = None if work.needs_fresh else flight.replica.take_idle(flight.started)
        try:
            if connection is None:
                flight.replica, connection = await self._pool.connect(flight.replica)
                flight.started, flight.started_at = self._now(), dt.datetime.now(dt.UTC)
            flight.connection = connection
            endpoint = flight.replica.endpoint
            if flight.is_unwanted:
                raise TransientError("connection", "it is not wanted any more")
            payload = self._sound(flight, work.payload or first_payload(work.request))
            sounding = flight.sounding
            reply = await connection.send(endpoint.request(payload), sounding.begun if sounding is not None else None)
        except asyncio.CancelledError:
            if connection is not None:
                connection.close()
            raise
        finally:
            if connection is not None:
                flight.replica.give_back(connection)
            self._pool.leave(flight.replica)
        return read_answer(work.request, endpoint.answer(reply), reply.body, keep_raw=self._settings.keep_raw)

    def _sound(self, flight: Flight, payload: bytes) -> bytes:
        """Make the request a stream, if the replica's limit wants one and nothing of the answer can get lost by it."""
        replica = flight.replica
        if self._settings.keep_raw or not replica.controller.wants_sounding(flight.rank, flight.started):
            return payload
        as_stream = streamed(payload)
        if as_stream is not None:
            flight.sounding = Sounding(self._pool, replica)
        return as_stream or payload

    # --------------------------------------------------------------------- answers

    def _answer(self, flight: Flight, fields: dict[str, Any], backlog: Backlog) -> None:
        work, replica, now = flight.work, flight.replica, self._now()
        latency_s = now - flight.started
        work.attempts += 1
        self._flights.any_answered = True
        self._flights.latencies.add(latency_s)
        replica.answered(now)
        tokens: int | None = fields["completion_tokens"]
        if tokens is not None and self._learn is not None:
            self._learn(work.request, tokens)
        self._pool.report(replica, replica.controller.answered(latency_s, tokens, flight.started, now))
        for other in work.flights:  # nobody needs those any more
            other.break_off()
        first_s = None if flight.sounding is None else flight.sounding.first_s
        ending = Ending(fields, flight.started_at, latency_s, replica.endpoint.base_url, first_s)
        if not work.had_second_chance:
            payload = self._settings.policies.second_payload(work.request, fields["outcome"])
            if payload is not None:
                work.had_second_chance, work.payload, work.fallback = True, payload, ending
                self._progress.retries += 1
                backlog.again(work, 0)
                return
        self._finish(work, ending, backlog)

    async def _failed(self, flight: Flight, error: ChatError, backlog: Backlog, latency_s: float) -> None:
        work, replica = flight.work, flight.replica
        free = (
            not await costs_an_attempt(flight, error, self._pool, self._flights) and work.free_failures < _FREE_FAILURES
        )
        note_fall(flight, error, self._now())
        self._refuse_key(replica, error)
        if isinstance(error, OverloadedError) and error.retry_after_s is not None:
            work.not_before = self._now() + error.retry_after_s
        if free:
            work.free_failures += not isinstance(error, UnreachableError)
        elif isinstance(error, OverloadedError):
            work.refusals += 1
        else:
            work.attempts += 1
        if not work.had_second_chance and not (work.fallback and isinstance(error, UnreachableError)):
            work.fallback = self._failure(flight, error, latency_s)
        if work.done or work.is_queued or work.flights:  # another request for this row decides
            return
        if free:
            backlog.again(work, 0)
            return
        delay_s = self._settings.retry.delay_s(error, work.attempts, work.refusals, self._rng)
        if delay_s is not None:
            self._progress.retries += 1
            backlog.again(work, delay_s)
            return
        self._progress.last_error = f"{error.code}: {error}"
        self._end(work, backlog)

    def _failure(self, flight: Flight, error: ChatError, latency_s: float) -> Ending:
        never = isinstance(error, RejectedError) and error.code not in _NOT_THE_ROW
        outcome = Outcome.REJECTED if never else Outcome.FAILED
        fields = {"outcome": outcome, "error_code": error.code, "error_message": str(error)}
        return Ending(fields, flight.started_at, latency_s, flight.replica.endpoint.base_url)

    def _end(self, work: Work, backlog: Backlog) -> None:
        """End a row with the best that came of it, if anything did."""
        if work.fallback is not None and not work.done:
            self._finish(work, work.fallback, backlog)

    def _refuse_key(self, replica: Replica, error: ChatError) -> None:
        if error.code == "http_401" or (error.code == "http_403" and not self._flights.any_answered):
            raise EndpointError(
                f"{replica.endpoint.base_url} refuses the key ({error.code.removeprefix('http_')}: {error}). "
                "Set OPENAI_API_KEY to a key it accepts and run the same command again."
            ) from error

    def _finish(self, work: Work, ending: Ending, backlog: Backlog) -> None:
        request, fields = work.request, ending.fields
        fields["model"] = fields.get("model") or request.body.get("model")
        result = ChatResult(
            row=request.row,
            id=request.id,
            request_hash=request.request_hash,
            attempts=work.attempts + work.refusals,
            started_at=ending.started_at,
            latency_s=ending.latency_s,
            endpoint=ending.endpoint,
            trace_id=self._tracer.trace_id(request),
            **fields,
        )
        work.done = True
        self._tracer.finished(request, result, first_token_s=ending.first_token_s)
        self._flights.finished += 1
        self._committer.add(result)
        self._progress.finish(result)
        backlog.finished()

    async def _land(self, backlog: Backlog) -> None:
        """Let what is under way come to its end, but not beyond the deadline; what waits is not sent any more."""
        deadline = self._settings.budgets.deadline
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if deadline is None else deadline - time.time()):
                await self._flights.landed.wait()
        for flight in self._flights.open:
            flight.break_off()
            self._end(flight.work, backlog)
        for work in (*backlog.drop(), *([self._held] if self._held is not None else [])):
            self._end(work, backlog)

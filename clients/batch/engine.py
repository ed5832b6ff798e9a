"""The run loop: rows in, requests out, answers committed. It knows neither files nor HTTP, only their owners."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import random
import time
from collections.abc import Iterator
from typing import Any

from clients.batch.answers import read_answer
from clients.batch.backlog import Backlog, Work
from clients.batch.budgets import Budgets
from clients.batch.commits import Committer
from clients.batch.connection import ClosedIdleError, Connection
from clients.batch.latency import Latencies
from clients.batch.policies import Policies, first_payload
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.batch.replica import Replica
from clients.batch.retry import RetryPolicy
from clients.batch.stragglers import patience_s
from clients.batch.verdict import Sample, Verdict
from clients.errors import ChatError, EndpointError, OverloadedError, RejectedError, TransientError, UnreachableError
from clients.events import emit
from clients.records import ChatRequest, ChatResult, Outcome

logger = logging.getLogger(__name__)

#: Refusals that say nothing about the row but what the endpoint has or allows just now (no credit, no such model, no
#: such path): another attempt is useless, but a later run may fare better, so the row is `failed`, not `rejected`.
_NOT_THE_ROW = ("http_402", "http_403", "http_404", "http_405", "http_407")

#: Failures that a row may have for nothing, because the server was going down; a row that brings it down every time
#: must not do so for ever.
_FREE_FAILURES = 8

#: Most requests for one row at the same time, and share of the finished rows for which a second one may be sent.
_MOST_FLIGHTS, _SECOND_FLIGHTS = 3, 0.05

#: Seconds between two looks at what is under way, and between two progress reports.
_WATCH_S, _REPORT_S = 0.1, 0.5

#: Seconds for which the servers must say that they miss requests before those are looked for.
_MISSING_S = 1.0


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


@dataclasses.dataclass(slots=True, eq=False)
class Flight:
    """One request under way.

    Attributes:
        started: `loop.time()` at which it was sent.
        started_at: The same in UTC.
        connection: What it travels on, once there is one.
        is_unwanted: Another request for the same row was answered first.
    """

    work: Work
    replica: Replica
    started: float
    started_at: dt.datetime
    connection: Connection | None = None
    is_unwanted: bool = False


class Engine:
    """Sends every row until it has an outcome.

    Args:
        pool: The replicas.
        committer: Where finished rows are kept.
        progress: What is counted and reported.
        settings: See EngineSettings.

    Attributes:
        stop_reason: Why the run ended before its last row, or None.
        verdict: What held the run back.
    """

    def __init__(self, *, pool: Pool, committer: Committer, progress: Progress, settings: EngineSettings) -> None:
        self._pool, self._committer, self._progress, self._settings = pool, committer, progress, settings
        self.stop_reason: str | None = None
        self.verdict = Verdict()
        self._rng = random.Random()  # noqa: S311  (jitter, not a secret)
        self._latencies = Latencies()
        self._flights: set[Flight] = set()
        self._all_landed = asyncio.Event()
        self._peak = self._finished = self._second_flights = 0
        self._faulty = self._answered = False
        self._missing_since: float | None = None
        self._last_error = ""
        self._feeder: asyncio.Task[None] | None = None

    async def run(self, requests: Iterator[ChatRequest | None]) -> None:
        """Bring every request to an outcome and commit it, unless a budget ends the run first.

        Args:
            requests: See Backlog.

        Raises:
            EndpointError: the endpoint is gone or refuses the key. Everything answered before is committed.
            StorageError: answers can no longer be kept.
        """
        backlog = Backlog(requests)
        async with self._committer, self._pool, asyncio.TaskGroup() as group:
            watchers = [group.create_task(self._report(backlog)), group.create_task(self._watch(backlog, group))]
            self._feeder = group.create_task(self._feed(backlog, group))
            await asyncio.wait([self._feeder])
            if self.stop_reason is not None and self._flights:
                await self._land(backlog)
            for task in watchers:
                task.cancel()

    # --------------------------------------------------------------------- sending

    async def _feed(self, backlog: Backlog, group: asyncio.TaskGroup) -> None:
        while True:
            await self._committer.room()
            work = await backlog.take()
            if work is None:
                return
            replica = await self._pool.acquire()
            self._send(work, replica, backlog, group)

    def _send(self, work: Work, replica: Replica, backlog: Backlog, group: asyncio.TaskGroup) -> None:
        flight = Flight(work, replica, asyncio.get_running_loop().time(), dt.datetime.now(dt.UTC))
        work.flights.append(flight)
        self._flights.add(flight)
        self._all_landed.clear()
        group.create_task(self._fly(flight, backlog))

    async def _fly(self, flight: Flight, backlog: Backlog) -> None:
        work, loop = flight.work, asyncio.get_running_loop()
        try:
            payload, _ = await self._exchange(flight)
            fields = read_answer(work.request, payload)
        except ChatError as error:
            self._landed(flight)
            if not flight.is_unwanted:
                await self._failed(flight, error, backlog, loop.time() - flight.started)
            return
        except BaseException:
            self._landed(flight)
            raise
        self._landed(flight)
        if not flight.is_unwanted:
            self._answer(flight, fields, backlog, loop.time() - flight.started)

    async def _exchange(self, flight: Flight) -> tuple[Any, bytes]:
        """Send the request and wait for its answer."""
        loop, work = asyncio.get_running_loop(), flight.work
        connection = flight.replica.take_idle(loop.time())
        try:
            if connection is None:
                flight.replica, connection = await self._pool.connect(flight.replica)
                flight.started, flight.started_at = loop.time(), dt.datetime.now(dt.UTC)
            flight.connection = connection
            endpoint = flight.replica.endpoint
            if flight.is_unwanted:
                raise TransientError("connection", "it is not wanted any more")
            reply = await connection.send(endpoint.request(work.payload or first_payload(work.request)))
            return endpoint.answer(reply), reply.body
        except asyncio.CancelledError:
            if connection is not None:
                connection.close()
            raise
        finally:
            if connection is not None:
                flight.replica.give_back(connection)
            self._pool.release(flight.replica)

    def _landed(self, flight: Flight) -> None:
        self._flights.discard(flight)
        flight.work.flights.remove(flight)
        if not self._flights:
            self._all_landed.set()

    # --------------------------------------------------------------------- answers

    def _answer(self, flight: Flight, fields: dict[str, Any], backlog: Backlog, latency_s: float) -> None:
        work, replica = flight.work, flight.replica
        now = asyncio.get_running_loop().time()
        work.attempts += 1
        self._answered = True
        self._latencies.add(latency_s)
        replica.answered(now)
        tokens = fields.get("completion_tokens")
        self._pool.report(replica, replica.controller.answered(latency_s, tokens, flight.started, now))
        self._recall(work)
        if not work.had_second_chance:
            payload = self._settings.policies.second_payload(work.request, fields["outcome"])
            if payload is not None:
                work.had_second_chance, work.payload = True, payload
                work.kept = (fields, flight.started_at, latency_s, replica.endpoint.base_url)
                self._progress.retries += 1
                backlog.again(work, 0)
                return
        self._finish(work, backlog, fields, flight.started_at, latency_s, replica.endpoint.base_url)

    def _recall(self, work: Work) -> None:
        """Break off other requests for a row that has its answer."""
        for other in work.flights:
            _break_off(other)

    async def _failed(self, flight: Flight, error: ChatError, backlog: Backlog, latency_s: float) -> None:
        work, replica = flight.work, flight.replica
        free = not await self._costs_an_attempt(flight, error) and work.free_failures < _FREE_FAILURES
        self._refuse_key(replica, error)
        if free:
            work.free_failures += not isinstance(error, UnreachableError)
        elif isinstance(error, OverloadedError):
            work.refusals += 1
        else:
            work.attempts += 1
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
        self._give_up(flight, error, backlog, latency_s)

    def _give_up(self, flight: Flight, error: ChatError, backlog: Backlog, latency_s: float) -> None:
        work = flight.work
        if work.kept is not None:  # the second chance came to nothing
            fields, started_at, latency_s, endpoint = work.kept
            self._finish(work, backlog, fields, started_at, latency_s, endpoint)
            return
        never = isinstance(error, RejectedError) and error.code not in _NOT_THE_ROW
        outcome = Outcome.REJECTED if never else Outcome.FAILED
        self._last_error = f"{error.code}: {error}"
        fields = {"outcome": outcome, "error_code": error.code, "error_message": str(error)}
        self._finish(work, backlog, fields, flight.started_at, latency_s, flight.replica.endpoint.base_url)

    async def _costs_an_attempt(self, flight: Flight, error: ChatError) -> bool:
        """Whether a failure is the row's, or that of a server that is going down, overloaded or not up yet."""
        replica, now = flight.replica, asyncio.get_running_loop().time()
        if isinstance(error, UnreachableError | ClosedIdleError):
            return False
        if isinstance(error, RejectedError):
            return True
        self._faulty = self._faulty or not isinstance(error, OverloadedError)
        if isinstance(error, OverloadedError):
            self._pool.report(replica, replica.controller.refused(replica.in_flight, now))
            if replica.last_answer is None and not self._answered and error.retry_after_s is None:
                self._pool.put_down(replica, f"it is not ready ({error.code.removeprefix('http_')})")
                return False
        if error.code == "connection":
            return not await self._is_going(replica)
        if error.code.startswith("http_5") and replica.failed(flight.work.request.row, now):
            self._pool.put_down(replica, f"it answers nothing but {error.code.removeprefix('http_')}", on_trial=True)
            return False
        return True

    async def _is_going(self, replica: Replica) -> bool:
        """Whether a broken connection is one of many that break as their server goes."""
        loop = asyncio.get_running_loop()
        if replica.broke(loop.time()):
            return True
        await asyncio.sleep(0.05)  # until the others have broken, too
        if not replica.is_up or replica.broke_lately(loop.time()):
            return True
        return not await self._pool.is_alive(replica)

    def _refuse_key(self, replica: Replica, error: ChatError) -> None:
        if error.code == "http_401" or (error.code == "http_403" and not self._answered):
            raise EndpointError(
                f"{replica.endpoint.base_url} refuses the key ({error.code.removeprefix('http_')}: {error}). "
                "Set OPENAI_API_KEY to a key it accepts and run the same command again."
            ) from error

    def _finish(
        self,
        work: Work,
        backlog: Backlog,
        fields: dict[str, Any],
        started_at: dt.datetime,
        latency_s: float,
        endpoint: str,
    ) -> None:
        request = work.request
        fields["model"] = fields.get("model") or request.body.get("model")
        result = ChatResult(
            row=request.row,
            id=request.id,
            request_hash=request.request_hash,
            attempts=work.attempts + work.refusals,
            started_at=started_at,
            latency_s=latency_s,
            endpoint=endpoint,
            **fields,
        )
        work.done = True
        self._finished += 1
        self._committer.add(result)
        self._progress.finish(result)
        backlog.finished()

    # -------------------------------------------------------------------- watching

    async def _report(self, backlog: Backlog) -> None:
        while True:
            self._progress.report(in_flight=len(self._flights), waiting=backlog.waiting, limit=self._pool.limit)
            await asyncio.sleep(_REPORT_S)

    async def _watch(self, backlog: Backlog, group: asyncio.TaskGroup) -> None:
        """Look after what is under way: timeouts, stuck requests, budgets; and note what holds the run back."""
        loop = asyncio.get_running_loop()
        before, cpu_before = loop.time(), time.process_time()
        while True:
            await asyncio.sleep(_WATCH_S)
            now, cpu = loop.time(), time.process_time()
            self._sample(backlog, now - before, (cpu - cpu_before) / max(1e-9, now - before))
            before, cpu_before = now, cpu
            self._time_out(now)
            self._send_again_what_is_stuck(backlog, group, now)
            self._keep_to_budgets()

    def _sample(self, backlog: Backlog, seconds: float, cpu: float) -> None:
        in_flight, pool = len(self._flights), self._pool
        self._peak = max(self._peak, in_flight)
        self.verdict.add(
            Sample(
                seconds=seconds,
                in_flight=in_flight,
                limit=pool.limit,
                peak=self._peak,
                is_full=any(replica.controller.is_full for replica in pool.replicas),
                at_cap=pool.is_at_cap,
                rows_left=not backlog.is_exhausted,
                cpu=cpu,
            )
        )

    def _time_out(self, now: float) -> None:
        for flight in list(self._flights):
            connection, timeouts = flight.connection, flight.replica.endpoint.timeouts
            if connection is None:
                continue
            age, began = now - flight.started, connection.last_data
            if age > timeouts.total or (not began and age > timeouts.first_byte):
                connection.close(TransientError("timeout", f"no complete answer within {age:.0f} s"))
            elif began and now - began > timeouts.idle:
                connection.close(TransientError("timeout", f"the answer stopped halfway for {timeouts.idle:g} s"))

    def _send_again_what_is_stuck(self, backlog: Backlog, group: asyncio.TaskGroup, now: float) -> None:
        missing, tail = self._missing(now), backlog.is_exhausted
        limit_s = patience_s(self._latencies, faulty=self._faulty, tail=tail, missing=missing > 0)
        if limit_s is None:
            return
        stuck = sorted((f for f in self._flights if now - f.started > limit_s), key=lambda flight: flight.started)
        allowed = int(_SECOND_FLIGHTS * self._finished) + 8 - self._second_flights
        if missing > 0:
            allowed = min(allowed, missing)
        for flight in stuck:
            work = flight.work
            if allowed <= 0 or len(work.flights) >= _MOST_FLIGHTS or work.flights[-1] is not flight:
                continue
            replica = self._pool.try_acquire(apart_from=flight.replica)
            if replica is None:
                return
            allowed -= 1
            self._second_flights += 1
            waited_s = round(now - flight.started, 1)
            emit(logger, "request.doubled", row=work.request.row, waited_s=waited_s, patience_s=round(limit_s, 1))
            self._send(work, replica, backlog, group)

    def _missing(self, now: float) -> int:
        """Requests that the servers do not know of although we wait for their answers."""
        loads = [replica.load for replica in self._pool.replicas if replica.is_up]
        if not loads or any(load is None for load in loads):
            return 0
        known = sum(load.running + load.waiting for load in loads if load is not None)
        settled = sum(1 for flight in self._flights if now - flight.started > _MISSING_S)
        missing = settled - known
        if missing <= 0:
            self._missing_since = None
            return 0
        self._missing_since = self._missing_since or now
        return missing if now - self._missing_since > _MISSING_S else 0

    def _keep_to_budgets(self) -> None:
        if self.stop_reason is not None or self._feeder is None or self._feeder.done():
            return
        progress = self._progress
        reason = self._settings.budgets.exceeded(
            outcomes=progress.session_outcomes,
            rows=progress.rows,
            output_tokens=progress.output_tokens,
            last_error=self._last_error,
            answer_s=self._latencies.quantile(0.9),
        )
        if reason is not None:
            self.stop_reason = reason
            emit(logger, "run.stopped", reason=reason)
            self._feeder.cancel()

    async def _land(self, backlog: Backlog) -> None:
        """Let what is under way come to its end, but not beyond the deadline; what waits is not sent any more."""
        deadline = self._settings.budgets.deadline
        left_s = None if deadline is None else deadline - time.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._all_landed.wait()
        for flight in self._flights:
            _break_off(flight)
        for work in backlog.drop():
            if work.kept is not None:
                fields, started_at, latency_s, endpoint = work.kept
                self._finish(work, backlog, fields, started_at, latency_s, endpoint)


def _break_off(flight: Flight) -> None:
    """End a request whose answer nobody waits for; the server sees the connection close and stops working on it."""
    flight.is_unwanted = True
    if flight.connection is not None:
        flight.connection.close()

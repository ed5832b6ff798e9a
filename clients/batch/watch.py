"""Looks after what is under way: timeouts, stuck requests, budgets, and what holds the run back."""

import asyncio
import logging
import time
from collections.abc import Callable

from clients.batch.backlog import Backlog, Work
from clients.batch.budgets import Budgets
from clients.batch.flights import Flights
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.batch.replica import Replica
from clients.batch.stragglers import patience_s
from clients.batch.verdict import Sample, Verdict
from clients.errors import TransientError
from clients.events import emit

logger = logging.getLogger(__name__)

#: Seconds between two looks, and between two progress reports (those that are not due say nothing).
_WATCH_S, _REPORT_S = 0.1, 0.5

#: Seconds for which the servers must say that they miss requests before those are looked for.
_MISSING_S = 1.0

#: Most requests for one row at the same time; how many second ones there may be, by finished rows and in any case.
_MOST_FLIGHTS, _DOUBLED_SHARE, _DOUBLED_ANYWAY = 3, 0.05, 8


class Watch:
    """Watches one run.

    Args:
        flights: What is under way.
        backlog: What is not.
        pool: The replicas.
        progress: Where it is told.
        budgets: What ends the run early.
        send: Sends a row to a replica where a place was taken.
        stop: Called once, with the reason, when a budget ends the run.
    """

    def __init__(
        self,
        *,
        flights: Flights,
        backlog: Backlog,
        pool: Pool,
        progress: Progress,
        budgets: Budgets,
        send: Callable[[Work, Replica], None],
        stop: Callable[[str], None],
    ) -> None:
        self._flights, self._backlog, self._pool, self._progress = flights, backlog, pool, progress
        self._budgets, self._send, self._stop = budgets, send, stop
        self.verdict = Verdict()
        self._doubled = 0
        self._missing_since: float | None = None
        self._stopped = False

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        before, cpu_before, reported = loop.time(), time.process_time(), 0.0
        while True:
            await asyncio.sleep(_WATCH_S)
            now, cpu = loop.time(), time.process_time()
            self._sample(now - before, (cpu - cpu_before) / max(1e-9, now - before))
            before, cpu_before = now, cpu
            self._time_out(now)
            self._double_what_is_stuck(now)
            self._keep_to_budgets()
            if now - reported >= _REPORT_S:
                reported = now
                self._progress.report(
                    in_flight=len(self._flights.open), waiting=self._backlog.waiting, limit=self._pool.limit
                )

    def _sample(self, seconds: float, cpu: float) -> None:
        self.verdict.add(
            Sample(
                seconds=seconds,
                in_flight=len(self._flights.open),
                limit=self._pool.limit,
                peak=self._flights.peak,
                is_full=any(replica.controller.is_full for replica in self._pool.replicas),
                at_cap=self._pool.is_at_cap,
                rows_left=not self._backlog.is_exhausted,
                cpu=cpu,
            )
        )

    def _time_out(self, now: float) -> None:
        for flight in self._flights.open:
            connection, timeouts = flight.connection, flight.replica.endpoint.timeouts
            if connection is None:
                continue
            age, latest = now - flight.started, connection.last_data
            if age > timeouts.total or (not latest and age > timeouts.first_byte):
                limit_s = timeouts.total if latest else min(timeouts.total, timeouts.first_byte)
                connection.close(TransientError("timeout", f"no complete answer within {limit_s:g} s"))
            elif latest and now - latest > timeouts.idle:
                connection.close(TransientError("timeout", f"the answer stopped halfway for {timeouts.idle:g} s"))

    def _double_what_is_stuck(self, now: float) -> None:
        missing = self._missing(now)
        limit_s = patience_s(
            self._flights.latencies,
            faulty=self._flights.any_broken,
            tail=self._backlog.is_exhausted,
            missing=missing > 0,
        )
        if limit_s is None:
            return
        allowed = int(_DOUBLED_SHARE * self._flights.finished) + _DOUBLED_ANYWAY - self._doubled
        allowed = min(allowed, missing) if missing else allowed
        stuck = [flight for flight in self._flights.open if now - flight.started > limit_s]
        for flight in sorted(stuck, key=lambda flight: flight.started):
            work = flight.work
            if allowed <= 0 or len(work.flights) >= _MOST_FLIGHTS or work.flights[-1] is not flight:
                continue
            replica = self._pool.try_acquire(apart_from=flight.replica)
            if replica is None:
                return
            allowed -= 1
            self._doubled += 1
            waited_s, limit_s = round(now - flight.started, 1), round(limit_s, 1)
            emit(logger, "request.doubled", row=work.request.row, waited_s=waited_s, patience_s=limit_s)
            self._send(work, replica)

    def _missing(self, now: float) -> int:
        """Requests that the servers do not know of although we wait for their answers."""
        loads = [replica.load for replica in self._pool.replicas if replica.is_up]
        if not loads or None in loads:
            return 0
        known = sum(load.running + load.waiting for load in loads if load is not None)
        settled = sum(1 for flight in self._flights.open if now - flight.started > _MISSING_S)
        if settled <= known:
            self._missing_since = None
            return 0
        self._missing_since = self._missing_since or now
        return settled - known if now - self._missing_since > _MISSING_S else 0

    def _keep_to_budgets(self) -> None:
        if self._stopped:
            return
        progress = self._progress
        reason = self._budgets.exceeded(
            outcomes=progress.session_outcomes,
            rows=progress.rows,
            output_tokens=progress.output_tokens,
            last_error=progress.last_error,
            answer_s=self._flights.latencies.quantile(0.9),
        )
        if reason is not None:
            self._stopped = True
            emit(logger, "run.stopped", reason=reason)
            self._stop(reason)

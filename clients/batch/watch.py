"""Looks after a run: lost requests, budgets, progress, and what holds it back."""

import asyncio
import logging
import time
from collections.abc import Callable

from clients.batch.backlog import Backlog
from clients.batch.budgets import Budgets
from clients.batch.flights import Flights
from clients.batch.hedging import Rescue
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.batch.verdict import Sample, Verdict
from clients.events import emit

logger = logging.getLogger(__name__)

#: Seconds between two looks, between two of those at every request under way, which cost a third of a millisecond for
#: a thousand, and between two progress reports (those that are not due say nothing).
_WATCH_S, _RESCUE_S, _REPORT_S = 0.1, 0.3, 0.5


class Watch:
    """Watches one run.

    Args:
        flights: What is under way.
        backlog: What is not.
        pool: The replicas.
        progress: Where it is told.
        budgets: What ends the run early.
        rescue: See Rescue.
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
        rescue: Rescue,
        stop: Callable[[str], None],
    ) -> None:
        self._flights, self._backlog, self._pool, self._progress = flights, backlog, pool, progress
        self._budgets, self._rescue, self._stop = budgets, rescue, stop
        self.verdict = Verdict()
        self._stopped = False

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        before, cpu_before, reported, rescued = loop.time(), time.process_time(), 0.0, 0.0
        while True:
            await asyncio.sleep(_WATCH_S)
            now, cpu = loop.time(), time.process_time()
            self._sample(now - before, (cpu - cpu_before) / max(1e-9, now - before))
            before, cpu_before = now, cpu
            self._keep_to_budgets()
            if now - rescued >= _RESCUE_S:
                rescued = now
                self._rescue.time_out(now)
                self._rescue.double_what_is_stuck(now)
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

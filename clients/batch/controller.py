"""How many requests one replica is sent at once: a pure policy, which the clock and every observation are passed to.

The aim is a server whose batch is full and whose queue is short. What is observed, best first:

1. **Telemetry** (`/metrics`): while nothing waits at the server and the limit is used up, the limit doubles; once a
   queue stays, the limit is our share of what runs plus a small reserve, for the time between an answer and the next
   request. Many preemptions mean that the KV cache does not hold what runs: the limit then falls to that, for a while.
2. **Refusals** (429, 503): the limit is what the server held when it refused. Single refusals while its queue is known
   to be empty, or a few among many answers, are accidents and not a matter of load.
3. **Latency**, where there is no telemetry. vLLM queues without bound and never refuses by default, so a limit that
   learns from errors alone would climb for ever. A queue shows as waiting time that does not depend on an answer's
   length; a server that only gets slower shows as throughput that no longer grows with the limit.
"""

import dataclasses
import math

from clients.batch.latency import Fit, fit
from clients.batch.telemetry import Load

#: Requests in flight at first: at most twice what the smallest servers run.
START = 16

#: More than any server runs, and fewer than the file descriptors most systems allow a process.
MOST = 8192

#: Share of the running requests that may wait at the server as a reserve.
RESERVE = 0.125

#: Seconds that a queue must last before the limit falls to what runs: prompts being read in look like a queue, too.
_QUEUE_LASTS_S = 0.4

#: Telemetry older than this many seconds counts no more.
_FRESH_S = 5.0

#: Seconds for which a limit found by refusals is not exceeded; doubled each time it proves right.
_CEILING_S, _CEILING_MAX_S = 10.0, 120.0

#: Share of the running requests that may be preempted between two readings before the limit falls.
_MANY_PREEMPTED = 0.02

#: Share of a limit's growth that throughput must grow by; with less the server is taken to be full.
_LEAST_GAIN = 0.15


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One change of the limit, with what led to it."""

    old: int
    new: int
    reason: str


class ConcurrencyController:
    """Finds the limit for one replica.

    Args:
        cap: The limit never exceeds it; None for MOST.
        reserve: See RESERVE. More behind an address whose replicas cannot be told apart, as chance spreads requests.
        start: The first limit.

    Attributes:
        limit: Requests that may be in flight now, from 1 to `cap`.
        is_full: Whether the server was found to have all it can work on.
    """

    def __init__(self, *, cap: int | None = None, reserve: float = RESERVE, start: int = START) -> None:
        self._cap = max(1, cap or MOST)
        self._reserve = reserve
        self.limit = min(start, self._cap)
        self.is_full = False
        self._changed_at = -math.inf
        self._telemetry_at = -math.inf
        self._queue_empty = False
        self._queue_since: float | None = None
        self._preemptions: int | None = None
        self._ceiling = MOST
        self._ceiling_until = -math.inf
        self._ceiling_s = _CEILING_S
        self._refused = self._answered = 0
        self._tokens = self._counted = 0
        self._samples: list[tuple[float, float]] = []
        self._quickest_wait_s = math.inf
        self._before: tuple[int, float] | None = None  # the last smaller limit and its throughput

    # ----------------------------------------------------------------- observations

    def loaded(self, load: Load, in_flight: int, now: float) -> Change | None:
        """Take a reading of the server's load.

        Args:
            load: The reading.
            in_flight: Our requests to this server when it was read.
            now: Seconds on any clock that does not go backwards.
        """
        self._telemetry_at = now
        ours = min(1.0, in_flight / max(1, load.running + load.waiting))  # others may use the server, too
        running = round(ours * load.running)
        reserve = max(2, math.ceil(self._reserve * running))
        self._queue_empty = load.waiting <= reserve // 4
        if self._is_thrashing(load):
            self._hold(running, now)
            return self._set(min(self.limit, running), now, f"KV cache is short: {load.preemptions} preemptions")
        if in_flight < 0.9 * self.limit or load.running + load.waiting < 0.8 * in_flight:
            self._queue_since = None
            return None  # the limit is not what holds us back, or not all of it has arrived yet
        if self._queue_empty:
            self._queue_since = None
            growth = max(reserve, self.limit // 4) if self.is_full else self.limit
            return self._set(self.limit + growth, now, f"{load.running} run, {load.waiting} wait")
        if self._queue_since is None:
            self._queue_since = now
        if now - self._queue_since < _QUEUE_LASTS_S:
            return None
        self.is_full = True
        if load.waiting <= 1.5 * reserve:
            return None
        return self._set(running + reserve, now, f"a queue stays: {load.running} run, {load.waiting} wait")

    def refused(self, in_flight: int, now: float) -> Change | None:
        """Take in a refusal for want of room (429, 503).

        Args:
            in_flight: Our other requests to this server.
            now: As in `loaded`.
        """
        self._refused += 1
        if self._has_telemetry(now) and self._queue_empty:
            return None
        if self._refused < max(3, 0.1 * (self._refused + self._answered)):
            return None
        if self._ceiling_until > -math.inf and self._refused == 3:
            self._ceiling_s = min(_CEILING_MAX_S, 2 * self._ceiling_s)
        self._hold(in_flight, now)
        return self._set(min(self.limit, self._ceiling), now, f"refused with {in_flight} in flight", keep_counts=True)

    def answered(self, latency_s: float, tokens: int | None, started_at: float, now: float) -> Change | None:
        """Take in an answer.

        Args:
            latency_s: Seconds it took.
            tokens: Its length; None when the server does not tell.
            started_at: When its request was sent.
            now: As in `loaded`.
        """
        if started_at < self._changed_at:
            return None  # it tells about the limit before
        self._answered += 1
        if self._has_telemetry(now):
            return None
        self._samples.append((float(tokens or 1), latency_s))
        self._tokens += tokens or 1
        self._counted += 1
        if len(self._samples) < max(8, min(64, self.limit // 4)):
            return None
        found, self._samples = fit(self._samples), []
        return self._judge(found, now)

    # ------------------------------------------------------------------------ inside

    def _is_thrashing(self, load: Load) -> bool:
        """Whether the server throws so many requests out of its batch that it computes much of it twice."""
        before, self._preemptions = self._preemptions, load.preemptions
        return before is not None and load.preemptions - before > max(1, _MANY_PREEMPTED * load.running)

    def _hold(self, limit: int, now: float) -> None:
        """Do not go beyond a limit for a while."""
        self._ceiling, self._ceiling_until = max(1, limit), now + self._ceiling_s
        self.is_full = True

    def _has_telemetry(self, now: float) -> bool:
        return now - self._telemetry_at < _FRESH_S

    def _judge(self, found: Fit, now: float) -> Change | None:
        """Decide by latency alone, from the answers to one limit."""
        self._quickest_wait_s = min(self._quickest_wait_s, found.wait_s)
        tokens = self._tokens / self._counted  # of all: those that come first after a change are short
        usual_s = found.wait_s + found.per_token_s * tokens if found.per_token_s else found.mean_s
        share = max(0.0, found.wait_s - self._quickest_wait_s) / usual_s if found.per_token_s else 0.0
        if share > 0.3:
            self.is_full = True
            room = self.limit * (1 - share) * (1 + self._reserve) + 2
            return self._set(int(room), now, f"answers wait {share:.0%} of their time")
        throughput = self.limit / usual_s
        before, self._before = self._before, (self.limit, throughput)
        if before is not None and before[0] < self.limit:
            enough = 1 + _LEAST_GAIN * (self.limit / before[0] - 1)
            if throughput < enough * before[1]:
                self.is_full = True
                return self._set(before[0], now, f"{self.limit} at once bring no more than {before[0]}")
        if self.is_full:
            if share > 0.05 or before is None or before[0] > self.limit:
                return None
            return self._set(self.limit + max(1, self.limit // 8), now, f"answers wait {share:.0%} of their time")
        return self._set(2 * self.limit, now, f"answers wait {share:.0%} of their time")

    def _set(self, limit: int, now: float, reason: str, *, keep_counts: bool = False) -> Change | None:
        if limit > self.limit and self._ceiling_until > -math.inf:
            if now < self._ceiling_until:
                limit = min(limit, self._ceiling)
            else:  # try a little more than what was refused once
                limit = min(limit, self.limit + max(1, self.limit // 20))
        limit = max(1, min(limit, self._cap))
        if limit == self.limit:
            return None
        change = Change(self.limit, limit, reason)
        self.limit, self._changed_at = limit, now
        self._samples = []
        if not keep_counts:
            self._refused = self._answered = 0
        return change

"""How many requests one replica is sent at once: a pure policy, which the clock and every observation are passed to.

The aim is a server whose batch is full and whose queue is short. What is observed, best first:

1. **Telemetry** (`/metrics`): while nothing waits at the server and the limit is used up, the limit doubles; once a
   queue stays, the limit is our share of what runs plus a small reserve, for the time between an answer and the next
   request. Many preemptions mean that the KV cache does not hold what runs: the limit then falls to that, for a while.
2. **Refusals** (429, 503): the limit follows what the server holds, and exceeds it only after a while, step by step.
   A few among many answers are accidents and not a matter of load.
3. **Waiting times**, where there is no telemetry: see `clients.batch.latency_policy`.
"""

import dataclasses
import math

from clients.batch.latency_policy import LatencyPolicy
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

#: Refusals within so many seconds are one episode; below this number, or this share of the requests, an accident.
_EPISODE_S, _FEW_REFUSED, _FEW_REFUSED_SHARE = 0.5, 3, 0.1

#: Seconds for which a limit that the server has set is not exceeded; doubled each time it proves right. One that is
#: smaller than any server's says that others had taken all, and may be exceeded soon.
_CEILING_S, _CEILING_MAX_S, _TINY_CEILING_S = 10.0, 120.0, 1.0

#: Share of the running requests that may be preempted between two readings before the limit falls.
_MANY_PREEMPTED = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One change of the limit, with what led to it."""

    old: int
    new: int
    reason: str


class ConcurrencyController:
    """Finds the limit for one replica. Every method takes `now`, seconds on any clock that does not go backwards.

    Args:
        cap: The limit never exceeds it; None for MOST.
        reserve: See RESERVE. More behind an address whose replicas cannot be told apart, as chance spreads requests.
        start: The first limit.
        telemetry_at: When telemetry was last read, before the first `loaded`; None where there is none.

    Attributes:
        limit: Requests that may be in flight now, from 1 to `cap`.
        is_full: Whether the server was found to have all it can work on.
    """

    def __init__(
        self,
        *,
        cap: int | None = None,
        reserve: float = RESERVE,
        start: int = START,
        telemetry_at: float | None = None,
    ) -> None:
        self._cap = max(1, cap or MOST)
        self._reserve = reserve
        self.limit = min(start, self._cap)
        self.is_full = False
        self._changed_at = -math.inf
        self._latency = LatencyPolicy()
        self._telemetry_at = -math.inf if telemetry_at is None else telemetry_at
        self._queue_since: float | None = None
        self._preemptions: int | None = None
        self._refused = self._answered = 0
        self._episode_from: int | None = None  # the limit before the refusals that come just now
        self._episode_at = -math.inf
        self._ceiling, self._ceiling_until, self._ceiling_s = MOST, -math.inf, _CEILING_S
        self._step = 0  # of the growth beyond a ceiling

    # ----------------------------------------------------------------- observations

    def loaded(self, load: Load, in_flight: int, now: float) -> Change | None:
        """Take a reading of the server's load.

        Args:
            load: The reading.
            in_flight: Our requests to this server when it was read.
            now: See the class.
        """
        self._telemetry_at = now
        ours = min(1.0, in_flight / max(1, load.running + load.waiting))  # others may use the server, too
        running = round(ours * load.running)
        reserve = max(2, math.ceil(self._reserve * running))
        if self._is_refusing(now):
            return None
        if (ended := self._end_episode()) is not None:
            return ended
        if self._is_thrashing(load):
            self._hold(running, now)
            return self._set(min(self.limit, running), now, _short_of_cache(load))
        if in_flight < 0.9 * self.limit or load.running + load.waiting < 0.8 * in_flight:
            self._queue_since = None
            return None  # the limit is not what holds us back, or not all of it has arrived yet
        if load.waiting <= reserve // 4:
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
        lost = min(in_flight // 5, max(0, in_flight - load.running - load.waiting))  # in flight for us alone
        return self._set(running + reserve + lost, now, f"a queue stays: {load.running} run, {load.waiting} wait")

    def refused(self, in_flight: int, now: float) -> Change | None:
        """Take in a refusal for want of room (429, 503).

        The limit falls with each refusal to what is still in flight. One change is reported for all of an episode, when
        it is over.

        Args:
            in_flight: Our other requests to this server.
            now: See the class.
        """
        self._refused += 1
        taken = self._answered + in_flight
        if self._refused < max(_FEW_REFUSED, _FEW_REFUSED_SHARE * (self._refused + taken)):
            return None
        ended = None if self._is_refusing(now) else self._end_episode()
        if self._episode_from is None:
            self._episode_from = self.limit
            if self._ceiling_until > -math.inf:
                self._ceiling_s = min(_CEILING_MAX_S, 2 * self._ceiling_s)
        self._episode_at = now
        self._hold(in_flight, now)
        self.limit = min(self.limit, self._ceiling)
        self._changed_at = now
        return ended

    def answered(self, latency_s: float, tokens: int | None, started_at: float, now: float) -> Change | None:
        """Take in an answer.

        Args:
            latency_s: Seconds it took.
            tokens: Its length; None when the server does not tell.
            started_at: When its request was sent.
            now: See the class.
        """
        self._answered += 1
        if not self._is_refusing(now) and (ended := self._end_episode()) is not None:
            return ended
        if started_at < self._changed_at or self._has_telemetry(now):
            return None  # it tells about the limit before, or there is something better to go by
        return self._decide(self._latency.judge(latency_s, tokens, self.limit), now)

    # -------------------------------------------------------------------- soundings

    def wants_sounding(self, in_flight: int, now: float) -> bool:
        """Whether the next request should be a stream, to tell by its first byte whether the server has a queue.

        Args:
            in_flight: Our requests to this server, that one included.
            now: See the class.
        """
        return not self._has_telemetry(now) and self._latency.wants_sounding(in_flight, self.limit, now)

    def sounding_sent(self) -> None:
        """The next request is a stream."""
        self._latency.sounding_sent()

    def sounding_failed(self, *, was_refused: bool = False, for_good: bool = False) -> None:
        """It came to nothing; see LatencyPolicy."""
        self._latency.sounding_failed(was_refused=was_refused, for_good=for_good)

    def first_byte(self, started_at: float, now: float) -> Change | None:
        """Take in the first byte of a stream that was begun at `started_at`."""
        if started_at < self._changed_at or self._has_telemetry(now) or self._is_refusing(now):
            self._latency.sounding_failed()
            return None
        return self._decide(self._latency.first_byte(now - started_at, self.limit, now), now)

    def sounding_ended(self, first_s: float, latency_s: float, tokens: int | None, now: float) -> Change | None:
        """Take in the end of a stream.

        Args:
            first_s: Seconds until its first byte.
            latency_s: Seconds until its last.
            tokens: Its length; None when the server does not tell.
            now: See the class.
        """
        if now - latency_s < self._changed_at or self._has_telemetry(now):
            self._latency.sounding_failed()
            return None
        return self._decide(self._latency.sounding_ended(first_s, latency_s, tokens or 0, self.limit, now), now)

    # ------------------------------------------------------------------------ inside

    def _has_telemetry(self, now: float) -> bool:
        return now - self._telemetry_at < _FRESH_S

    def _decide(self, found: tuple[int, str] | None, now: float) -> Change | None:
        self.is_full = self.is_full or self._latency.is_full
        if found is None:
            return None
        return self._set(found[0], now, found[1])

    def _is_refusing(self, now: float) -> bool:
        return now - self._episode_at <= _EPISODE_S

    def _end_episode(self) -> Change | None:
        """The change that the refusals have made, once they are over."""
        old, self._episode_from = self._episode_from, None
        if old is None:
            return None
        self._refused = self._answered = 0
        self._latency.forget()
        if old == self.limit:
            return None
        return Change(old, self.limit, f"refused: it holds {self.limit}")

    def _is_thrashing(self, load: Load) -> bool:
        """Whether the server throws so many requests out of its batch that it computes much of it twice."""
        before, self._preemptions = self._preemptions, load.preemptions
        return before is not None and load.preemptions - before > max(1, _MANY_PREEMPTED * load.running)

    def _hold(self, limit: int, now: float) -> None:
        """Do not go beyond a limit for a while."""
        self._ceiling = max(1, limit)
        self._ceiling_until = now + (self._ceiling_s if limit >= START else _TINY_CEILING_S)
        self._step = 0
        self.is_full = True

    def _set(self, limit: int, now: float, reason: str) -> Change | None:
        if limit > self.limit and self._ceiling_until > -math.inf:
            if now < self._ceiling_until:
                limit = min(limit, self._ceiling)
            else:  # a little more than what was refused once, then faster
                self._step = min(self.limit, max(1, self.limit // 20, 2 * self._step))
                limit = min(limit, self.limit + self._step)
        limit = max(1, min(limit, self._cap))
        if limit == self.limit:
            return None
        change = Change(self.limit, limit, reason)
        self.limit, self._changed_at = limit, now
        self._refused = self._answered = 0
        self._latency.forget()
        return change


def _short_of_cache(load: Load) -> str:
    usage = "" if load.kv_usage is None else f", {load.kv_usage:.0%} in use"
    return f"KV cache is short: {load.preemptions} preemptions{usage}"

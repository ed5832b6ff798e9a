"""Hedged requests: finds those that are lost or stuck, breaks them off or sends a second one for the same row."""

import logging
from collections import Counter
from collections.abc import Callable

from clients.batch.backlog import Backlog, Work
from clients.batch.flights import Flight, Flights
from clients.batch.pool import Pool
from clients.batch.replica import Replica
from clients.batch.stragglers import patience_s
from clients.errors import TransientError
from clients.events import emit

logger = logging.getLogger(__name__)

#: Seconds after which a server should know of a request, and for which it must have denied that before it is believed;
#: its denials are forgotten after the last of the three.
_SETTLED_S, _DENIED_S, _FORGOTTEN_S = 0.25, 1.0, 2.0

#: Seconds without a byte after which an answer that has begun counts as stuck.
_STALLED_S = 3.0

#: An answer that takes so many times as long as the longest so far does not come any more.
_HOPELESS = 4

#: Most requests for one row at the same time, and most rows with several while there are others to send: a share of
#: what is under way, and so many in any case. A server that suddenly gets slow must not get twice the work.
_MOST_FLIGHTS, _DOUBLED_SHARE, _DOUBLED_ANYWAY = 3, 0.1, 8


class Rescue:
    """Looks after the requests under way.

    Args:
        flights: All of them.
        backlog: What is still to be sent.
        pool: The replicas.
        max_attempts: Requests for a row after which no further one is sent while others are under way.
        send: Sends a row to a replica where a place was taken.
    """

    def __init__(
        self,
        *,
        flights: Flights,
        backlog: Backlog,
        pool: Pool,
        max_attempts: int,
        send: Callable[[Work, Replica], None],
    ) -> None:
        self._flights, self._backlog, self._pool, self._send = flights, backlog, pool, send
        self._max_attempts = max_attempts
        self._denials: dict[Replica, list[tuple[float, int]]] = {}

    def time_out(self, now: float) -> None:
        """End requests that have exceeded a limit of time."""
        for flight in self._flights.open:
            connection, timeouts = flight.connection, flight.replica.endpoint.timeouts
            if connection is None:
                continue
            age, latest = now - flight.started, connection.last_data
            if age > timeouts.total or (not latest and age > timeouts.first_byte):
                limit_s = timeouts.total if latest else min(timeouts.total, timeouts.first_byte)
                connection.close(TransientError("timeout", f"no complete answer within {limit_s:g} s"))
            elif latest and flight.sounding is None and now - latest > timeouts.idle:
                connection.close(TransientError("timeout", f"the answer stopped halfway for {timeouts.idle:g} s"))

    def double_what_is_stuck(self, now: float) -> None:
        """Send a second request for each row whose first one has been under way for suspiciously long."""
        lost = self._lost(now)
        tail = self._backlog.is_exhausted
        doubled = sum(1 for flight in self._flights.open if len(flight.work.flights) > 1) // 2
        allowed = max(_DOUBLED_ANYWAY, int(_DOUBLED_SHARE * len(self._flights.open))) - doubled
        for flight, limit_s in self._stuck(now, lost, tail=tail):
            work, replica = flight.work, flight.replica
            if len(work.flights) >= _MOST_FLIGHTS:
                self._cut_off_if_hopeless(work.flights[0], now)
                continue
            if lost.get(replica, 0) > 0:
                lost[replica] -= 1
            elif not tail and allowed <= 0:
                continue
            if work.attempts + len(work.flights) >= self._max_attempts or now < work.not_before:
                continue
            place = self._pool.try_acquire(apart_from=replica)
            if place is None:
                return
            allowed -= 1
            waited_s, patience = round(now - flight.started, 1), round(limit_s, 1)
            emit(logger, "request.doubled", row=work.request.row, waited_s=waited_s, patience_s=patience)
            self._send(work, place)

    def _stuck(self, now: float, lost: Counter[Replica], *, tail: bool) -> list[tuple[Flight, float]]:
        """The newest request of each row that is stuck, the oldest first, and the seconds after which it counts so."""
        faulty, latencies = self._flights.any_broken, self._flights.latencies
        shares = {
            replica: lost[replica] / max(1, replica.in_flight) if replica in lost else None
            for replica in {flight.replica for flight in self._flights.open}
        }
        limits: dict[tuple[Replica, int], float | None] = {
            (replica, doubled): patience_s(latencies, faulty=faulty, tail=tail, lost_share=share, doubled=doubled)
            for replica, share in shares.items()
            for doubled in range(_MOST_FLIGHTS)
        }
        found: list[tuple[Flight, float]] = []
        for flight in self._flights.open:
            if flight.work.flights[-1] is not flight or flight.is_unwanted:
                continue
            doubled = min(_MOST_FLIGHTS, len(flight.work.flights)) - 1
            limit_s, connection = limits[flight.replica, doubled], flight.connection
            begun = connection is not None and flight.sounding is None and connection.last_data
            if begun and now - begun > _STALLED_S:
                found.append((flight, _STALLED_S))
            elif limit_s is not None and now - flight.started > limit_s:
                found.append((flight, limit_s))
        return sorted(found, key=lambda entry: entry[0].started)

    def _cut_off_if_hopeless(self, flight: Flight, now: float) -> None:
        longest_s = self._flights.latencies.quantile(1.0)
        if flight.connection is not None and now - flight.started > _HOPELESS * longest_s:
            flight.connection.close(TransientError("timeout", f"no answer in {_HOPELESS} times the longest so far"))

    def _lost(self, now: float) -> Counter[Replica]:
        """Requests that a replica does not know of, by its own telemetry; replicas that tell nothing are left out."""
        young = Counter(
            flight.replica
            for flight in self._flights.open
            if flight.replica.load_at - _SETTLED_S < flight.started <= flight.replica.load_at
        )
        lost: Counter[Replica] = Counter()
        for replica in self._pool.replicas:
            if replica.load is None or replica.site.is_blind:  # then its load is an estimate
                continue
            denials = self._denials.setdefault(replica, [])
            if not denials or denials[-1][0] != replica.load_at:
                denied = replica.load_in_flight - young[replica] - replica.load.running - replica.load.waiting
                denials.append((replica.load_at, denied))
            while denials[0][0] < now - _FORGOTTEN_S and len(denials) > 1:
                del denials[0]
            if denials[-1][0] - denials[0][0] >= _DENIED_S and denials[-1][0] > now - _FORGOTTEN_S:
                lost[replica] = max(0, min(denied for _, denied in denials))
        return lost

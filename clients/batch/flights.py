"""The requests that are under way, and what those that came back have taught."""

import asyncio
import dataclasses
import datetime as dt

from clients.batch.backlog import Work
from clients.batch.connection import Connection
from clients.batch.first_byte_probe import Sounding
from clients.batch.latency import Latencies
from clients.batch.replica import Replica


@dataclasses.dataclass(slots=True, eq=False)
class Flight:
    """One request under way.

    Attributes:
        started: `loop.time()` at which it was sent.
        started_at: The same in UTC.
        rank: How many requests its replica had then, this one included.
        connection: What it travels on, once there is one.
        sounding: What it is besides, when it is sent as a stream.
        is_unwanted: Another request for the same row was answered first.
    """

    work: Work
    replica: Replica
    started: float
    started_at: dt.datetime
    rank: int
    connection: Connection | None = None
    sounding: Sounding | None = None
    is_unwanted: bool = False

    def break_off(self) -> None:
        """End it: nobody waits for its answer; the server sees the connection close and stops working on it."""
        self.is_unwanted = True
        if self.connection is not None:
            self.connection.close()


class Flights:
    """All of them.

    Attributes:
        open: Those under way.
        peak: Most that were under way at once.
        finished: Rows that have their outcome.
        latencies: Of the answers.
        any_answered: Whether any request was answered in this run.
        any_broken: Whether a connection broke or an answer came broken in this run.
        landed: Set while none is under way.
    """

    def __init__(self) -> None:
        self.open: set[Flight] = set()
        self.peak = self.finished = 0
        self.latencies = Latencies()
        self.any_answered = self.any_broken = False
        self.landed = asyncio.Event()
        self.landed.set()

    def start(self, work: Work, replica: Replica) -> Flight:
        """Register a request."""
        now = asyncio.get_running_loop().time()
        flight = Flight(work, replica, now, dt.datetime.now(dt.UTC), replica.in_flight)
        work.flights.append(flight)
        if not self.open:
            self.landed.clear()
        self.open.add(flight)
        if len(self.open) > self.peak:
            self.peak = len(self.open)
        return flight

    def land(self, flight: Flight) -> None:
        """Take one out that has come to its end, whichever."""
        self.open.discard(flight)
        flight.work.flights.remove(flight)
        if not self.open:
            self.landed.set()

"""Reads one replica's load while it is up, and finds out when it is back while it is down."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from clients.batch.connection import Connection
from clients.batch.controller import Change
from clients.batch.replica import Replica
from clients.batch.telemetry import Load, scaled
from clients.errors import ChatError, UnreachableError

#: Seconds between two readings of /metrics: while the limit is being found, and afterwards.
_EAGER_S, _CALM_S = 0.05, 0.5

#: Seconds until /metrics is asked again where it does not answer.
_NO_TELEMETRY_S = 15.0

#: Seconds between two tries to reach a replica that is down.
_RETURN_S = 0.5

#: Fresh connections over which the load is sampled behind an address whose processes cannot be told apart.
_SAMPLES = 4

#: New connections, for each process behind the address, of which one should lead to a certain process; so many rounds
#: of them in a row, and it is gone or takes no more.
_TRIES, _LEAST_TRIES, _ROUNDS = 4, 8, 2


class Probe:
    """Watches one replica.

    Args:
        replica: The replica.
        owner: The replica that a new connection to the same site leads to, as in `Pool.owner`.
        peers: How many processes are known to be behind the same address.
        put_down: Called with the reason when it cannot be reached.
        come_up: Called when it is back.
        report: Called with every change of its limit.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        owner: Callable[[Replica, Connection], Awaitable[Replica]],
        peers: Callable[[], int],
        put_down: Callable[[Replica, str], None],
        come_up: Callable[[Replica], None],
        report: Callable[[Replica, Change | None], None],
    ) -> None:
        self._replica, self._site = replica, replica.site
        self._owner, self._put_down, self._come_up, self._report = owner, put_down, come_up, report
        self._peers, self._rounds = peers, 0
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Watch until the replica is retired."""
        replica = self._replica
        try:
            while not replica.is_retired:
                replica.changed.clear()
                pause_s = await (self._look() if replica.is_up else self._try_again())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await replica.changed.wait()
        finally:
            if self._connection is not None:
                self._connection.close()

    async def _look(self) -> float:
        """Read the load and pass it on; returns the seconds until the next reading."""
        replica = self._replica
        if self._connection is None or not self._connection.is_open:
            self._connection = await self._connect()
        load = None if self._connection is None else await self._load(self._connection)
        if not replica.is_up:
            return 0.0
        if load is None:
            return _CALM_S if replica.load is not None else _NO_TELEMETRY_S
        replica.read(load, asyncio.get_running_loop().time())
        change = replica.controller.loaded(load, replica.in_flight, replica.load_at)
        self._report(replica, change)
        eager = not replica.controller.is_full and replica.room <= 0
        return _EAGER_S if eager or change is not None else _CALM_S

    async def _connect(self) -> Connection | None:
        """A connection to this very replica, which nothing but its telemetry uses."""
        replica = self._replica
        for _ in range(max(_LEAST_TRIES, _TRIES * self._peers())):
            try:
                connection = await self._site.connect()
            except UnreachableError as error:
                if not self._site.tells_apart:
                    self._put_down(replica, str(error))
                return None
            if await self._owner(replica, connection) is replica and connection.is_open:
                self._rounds = 0
                return connection
            connection.close()
        self._rounds += 1
        if self._rounds >= _ROUNDS or replica.many_broke(asyncio.get_running_loop().time()):
            self._rounds = 0
            self._put_down(replica, "new connections no longer lead to it")
        return None

    async def _load(self, connection: Connection) -> Load | None:
        load = await self._site.load(connection)
        if load is None or not self._site.is_blind:
            return load
        loads = [load]
        with contextlib.suppress(ChatError):
            for _ in range(_SAMPLES - 1):
                sample = await self._site.connect()
                if (load := await self._site.load(sample)) is not None:
                    loads.append(load)
                sample.close()
        return scaled(loads, self._replica.in_flight)

    async def _try_again(self) -> float:
        """See whether the replica is back; returns the seconds until the next try."""
        replica = self._replica
        pause_s = _RETURN_S * (0.75 + 0.5 * random.random())  # noqa: S311  (jitter, not a secret)
        for _ in range(2 * self._peers() if self._site.tells_apart else 1):  # chance decides where each one leads
            try:
                connection = await self._site.connect()
            except UnreachableError:
                return pause_s
            reply = None
            if await self._owner(replica, connection) is replica:
                reply = await self._site.ask(connection, "/health")
            if reply is not None and reply.status < 500:
                replica.give_back(connection)
                self._come_up(replica)
                return 0.0
            connection.close()
        return pause_s

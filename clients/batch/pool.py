"""The replicas behind one or several endpoints: found, watched, and each given as much as it can work on."""

import asyncio
import collections
import logging
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from clients.batch.chat import ChatEndpoint
from clients.batch.connection import Connection
from clients.batch.controller import RESERVE, Change, ConcurrencyController
from clients.batch.discovery import Discovery
from clients.batch.endpoint_address import Site
from clients.batch.probe import Probe
from clients.batch.replica import Replica
from clients.errors import EndpointError, UnreachableError
from clients.events import emit

logger = logging.getLogger(__name__)

#: Reserve behind an address where several processes may answer that cannot be told apart: chance spreads the requests.
_BLIND_RESERVE = 0.5

#: Seconds between two looks at the replicas.
_LOOK_S = 0.2

#: Seconds after which a process is forgotten that is down while others answer at its address: it was replaced.
_REPLACED_S = 30.0


class Pool:
    """Hands out replicas to send to. An async context manager.

    Args:
        endpoints: At least one; all serve the same model.
        cap: Requests in flight over all replicas; None leaves it to the controllers.
        wait_s: Seconds without any replica that is up, after which EndpointError ends the run.

    Attributes:
        in_flight: Places that are taken.
        replicas: Every replica known.
    """

    def __init__(self, endpoints: Sequence[ChatEndpoint], *, cap: int | None = None, wait_s: float = 600.0) -> None:
        self._endpoints, self._cap, self._wait_s = endpoints, cap, wait_s
        self._turns: collections.deque[asyncio.Future[None]] = collections.deque()
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []
        self._down_since: float | None = None
        self._last_reason = "no address"
        self.in_flight = 0
        self.replicas: list[Replica] = []

    # --------------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._tasks.__aenter__()
        self._down_since = self._loop.time()
        for endpoint in self._endpoints:
            follower = Discovery(endpoint, found=self._add_replica, gone=self._forget, failed=self._fail)
            self._start(follower.run())
        self._start(self._look_after())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, at)
        finally:
            for endpoint in self._endpoints:
                endpoint.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.append(self._tasks.create_task(work))

    # ---------------------------------------------------------------- for the engine

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, over all replicas that are up."""
        limit = sum(replica.controller.limit for replica in self.replicas if replica.is_up and not replica.is_retired)
        return limit if self._cap is None else min(limit, self._cap)

    @property
    def is_at_cap(self) -> bool:
        """Whether the limit set by hand is what holds requests back."""
        return self._cap is not None and self.in_flight >= self._cap

    async def acquire(self) -> Replica:
        """Wait for a replica with room, and take a place there."""
        while (replica := self.try_acquire()) is None:
            turn = self._loop.create_future()
            self._turns.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self.wake()
                raise
        return replica

    def try_acquire(self, *, apart_from: Replica | None = None) -> Replica | None:
        """A place at the replica that is least full, if there is one; at another than `apart_from` where possible."""
        if self.is_at_cap:
            return None
        chosen: Replica | None = None
        for replica in self.replicas:
            if replica is not apart_from and replica.room > 0:
                chosen = replica if chosen is None or replica.fullness < chosen.fullness else chosen
        if chosen is None and apart_from is not None and apart_from.room > 0:
            chosen = apart_from
        if chosen is not None:
            self._place(chosen, 1)
        return chosen

    def leave(self, replica: Replica) -> None:
        """Give a place back, and tell those who wait for one later, with `wake`: it may be taken again at once."""
        self._place(replica, -1)

    def wake(self) -> None:
        """Let those who wait for a place try again, as many as there are places."""
        if not self._turns:
            return
        free = sum(max(0, replica.room) for replica in self.replicas)
        while self._turns and free > 0:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    async def connect(self, replica: Replica) -> tuple[Replica, Connection]:
        """A new connection, and the replica it leads to: the wanted one if chance is willing, else one with room.

        The place taken at the wanted replica moves along.

        Raises:
            UnreachableError: none could be made; the replica is down then.
            EndpointError: TLS fails.
        """
        try:
            return await self._connect(replica)
        except UnreachableError as error:
            self.put_down(replica, str(error))
            raise

    def put_down(self, replica: Replica, reason: str, *, on_trial: bool = False, died: bool = True) -> None:
        """Leave a replica alone until it shows that it is back.

        Args:
            replica: Which one.
            reason: For the log, and for the error when no replica is left.
            on_trial: Let it have one request at a time when it is back, until one is answered.
            died: Its process is gone, and not just useless for now.
        """
        if replica.is_up:
            emit(logger, "replica.down", replica=str(replica.site), reason=reason)
            replica.go_down(self._loop.time(), on_trial=on_trial, died=died)
        self._last_reason = reason

    async def is_alive(self, replica: Replica) -> bool:
        """See whether new connections still lead to the process that they led to; if none can be made, it is down."""
        for _ in range(3 * len(self._at(replica.site))):
            try:
                connection = await replica.site.connect()
            except UnreachableError as error:
                self.put_down(replica, str(error))
                return False
            if await self.owner(replica, connection) is replica:
                replica.give_back(connection)
                return True
            connection.close()
        return False

    def report(self, replica: Replica, change: Change | None) -> None:
        """Log a change of a limit, and let waiting rows use it."""
        if change is not None:
            emit(
                logger,
                "limiter.changed",
                replica=str(replica.site),
                old=change.old,
                new=change.new,
                reason=change.reason,
            )
            self.wake()

    # ------------------------------------------------------------------ connections

    def _place(self, replica: Replica, change: int) -> None:
        replica.in_flight += change
        self.in_flight += change

    async def _connect(self, replica: Replica) -> tuple[Replica, Connection]:
        site = replica.site
        for _ in range(2 * len(self.replicas) + 2):
            connection = await site.connect()
            owner = await self.owner(replica, connection)
            if not connection.is_open:
                continue
            if owner is replica:
                return replica, connection
            if owner.room > 0:
                return self._move(replica, owner), connection
            owner.give_back(connection)
        # New connections hardly lead there any more, and the others are full: one more does them no harm.
        connection = await site.connect()
        owner = await self.owner(replica, connection)
        return (replica if owner is replica else self._move(replica, owner)), connection

    def _move(self, replica: Replica, owner: Replica) -> Replica:
        """Move a place; returns where it is then."""
        self._place(replica, -1)
        self._place(owner, 1)
        return owner

    async def owner(self, replica: Replica, connection: Connection) -> Replica:
        """The replica that a connection to the same site as `replica` leads to; `replica` itself when nobody can tell.

        A process that was not known yet becomes a replica.
        """
        site = replica.site
        if not site.tells_apart:
            return replica
        load = await site.load(connection)
        if load is None or not load.identity:
            return replica
        known = next((other for other in self._at(site) if other.identity == load.identity), None)
        return known or self._add_replica(site, load.identity)

    def _at(self, site: Site) -> list[Replica]:
        return [replica for replica in self.replicas if replica.site is site]

    # --------------------------------------------------------------------- replicas

    def _forget(self, site: Site) -> None:
        for replica in self._at(site):
            self._retire(replica)

    def _fail(self, reason: str) -> None:
        self._last_reason = reason

    def _add_replica(self, site: Site, identity: str) -> Replica:
        now = self._loop.time()
        controller = ConcurrencyController(
            cap=self._cap,
            reserve=_BLIND_RESERVE if site.is_blind else RESERVE,
            telemetry_at=now if site.has_telemetry else None,
        )
        replica = Replica(site, identity, controller, now)
        self.replicas.append(replica)
        emit(logger, "replica.found", replica=str(site), process=identity)
        probe = Probe(
            replica,
            owner=self.owner,
            peers=lambda: len(self._at(site)),
            put_down=self.put_down,
            come_up=self._come_up,
            report=self.report,
        )
        self._start(probe.run())
        self.wake()
        return replica

    def _retire(self, replica: Replica) -> None:
        """Forget a replica; what it still works on comes to its end."""
        emit(logger, "replica.gone", replica=str(replica.site), process=replica.identity)
        replica.is_retired = True
        self.replicas.remove(replica)
        replica.changed.set()
        replica.close_idle(self._loop.time(), older_than_s=-1)

    def _come_up(self, replica: Replica) -> None:
        replica.come_up(self._loop.time())
        emit(logger, "replica.up", replica=str(replica.site), process=replica.identity)
        self.wake()

    # --------------------------------------------------------------------- watching

    async def _look_after(self) -> None:
        """Close idle connections, and give up when nothing has been up for too long."""
        while True:
            now = self._loop.time()
            for replica in list(self.replicas):
                replica.close_idle(now)
                replaced = replica.site.tells_apart and len(self._at(replica.site)) > 1
                if replaced and not replica.is_up and now - replica.down_since > _REPLACED_S:
                    self._retire(replica)
            if any(replica.is_up for replica in self.replicas):
                self._down_since = None
            elif self._down_since is None:
                self._down_since = now
                emit(logger, "endpoint.unreachable", endpoint=self.names, reason=self._last_reason)
            elif now - self._down_since > self._wait_s:
                raise EndpointError(
                    f"{self.names} could not be reached for {self._wait_s:g} s ({self._last_reason}). "
                    "Committed rows are kept: bring the server back and run the same command again."
                )
            await asyncio.sleep(_LOOK_S)

    @property
    def names(self) -> str:
        """The endpoints' addresses, for messages."""
        return ", ".join(endpoint.base_url for endpoint in self._endpoints)
